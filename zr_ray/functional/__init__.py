"""Pure maths: functions of tensors that import torch only, read no config, change no argument. One file per subject."""
