"""One model of transformers at a time is built in a process.

While transformers loads a checkpoint it changes what every model is made of (weights are neither
drawn nor tied), and puts it back at the end. What another thread builds meanwhile comes out untied;
and of two that load at once the last to end may put back what the other had changed, after which
every model of the process is untied, with a head that was drawn at random.
"""

import threading

ALONE = threading.RLock()
"""Held while a model is built or loaded."""
