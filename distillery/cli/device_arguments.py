"""Flags that say how training uses its device; they change speed and memory, not what is learnt."""

from dataclasses import dataclass

from distillery.cli.flags import flag


@dataclass(frozen=True)
class DeviceArguments:
    """Training: the device."""

    compile: bool = flag(
        False,
        "Compile the layers of teacher and student (torch.compile), which takes minutes at the "
        "start and a C++ compiler.",
        "--torch_compile",
        resumable=True,
    )
    auto_batch_size: bool = flag(
        False,
        "Find the largest micro-batch that fits into the GPU's memory, before the first update. "
        "The rows of an update stay --per_device_train_batch_size times "
        "--gradient_accumulation_steps in each process.",
        "--auto_find_batch_size",
        resumable=True,
    )
