"""Big to small: policy and labels; pruning, repair, distillation, the gate, and their ladder.

Nothing is imported here: a policy is read and tried without torch.
"""
