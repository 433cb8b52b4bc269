"""What ``--device`` says, as a device of this machine."""

import torch


def pick_device(name: str) -> torch.device:
    """``auto`` is the accelerator if there is one.

    Raises ValueError for a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return device_from(name)


def device_from(name: str) -> torch.device:
    """A torch device that can be used.

    Raises ValueError for one that this machine does not have.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); give cpu or one that is there.") from error
    return device
