"""What a person sees when something goes wrong: one line that says what, and how to mend it."""

import dis
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from promptify.validation import BadInput

_OUR_PACKAGES = frozenset({"promptify", "foundation", "retrieval", "distill", "decant"})
_MENDS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: "this is in the way; choose another name",
    errno.EISDIR: "this is a folder, a file was expected",
    errno.ENOTDIR: "this is a file, a folder was expected",
}
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a person can mend into one line on stderr; leave our bugs their traceback.

    Bad input (a `ValueError` raised by our own packages), a file that is missing or may not be
    read, and a full disk end the process with exit code 2; Ctrl-C with 130, and output that nobody
    reads on (`| head`) with 141. Anything else, a library's `ValueError` among it, is a bug and
    passes through unchanged. The environment variable DECANT_TRACEBACK=1 prints the traceback
    before the line.

    Works as a decorator too.

    Raises:
        SystemExit: with the code, in place of an error that was explained.
    """
    try:
        yield
    except BrokenPipeError:
        # Who reads the lines has enough of them (`| head`); what is left to be said goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        _leave("interrupted; the same command picks up where it stopped", code=130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        _leave(message, code=2)


def utf8_text(path: Path) -> str:
    """The text of a person's file.

    Raises:
        BadInput: it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None


def explain(error: BaseException) -> str | None:
    """The one line for an error that a person can mend, or None for a bug.

    A full disk is recognised wherever it stands in the chain of causes, since libraries wrap it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _is_full_disk(cause):
            return (
                "the disk is full; nothing half-written was kept. "
                "Free some space and give the same command again"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.errno in _MENDS and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {_MENDS[error.errno]}"
    if isinstance(error, ValueError) and _raised_by_us(error.__traceback__):
        return " ".join(str(error).split())
    return None


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return True
    # FAISS and safetensors keep only the words of the system's error, torch.save a short write.
    said = str(error)
    return "No space left on device" in said or (
        "inline_container.cc" in said and "unexpected pos" in said
    )


def _raised_by_us(trace: TracebackType | None) -> bool:
    """Whether a `raise` statement in our packages is where the error began.

    Asking for the statement tells a check of ours from a bug of ours, such as an array operation
    on shapes that do not fit, whose ValueError comes out of C code called from the same frame.
    """
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return package in _OUR_PACKAGES and instruction == dis.opmap["RAISE_VARARGS"]


def _leave(message: str, *, code: int) -> None:
    if os.environ.get("DECANT_TRACEBACK") == "1":
        traceback.print_exc()
    for bar in list(tqdm._instances):
        bar.close()  # its line ends here, and ours stands alone
    sys.stderr.write(f"decant: error: {message}\n")
    raise SystemExit(code) from None
