"""Pure maths: functions of tensors that import torch and the standard library only, read no config, change no argument.
One file per subject."""
