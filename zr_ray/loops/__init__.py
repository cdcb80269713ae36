"""One loop per algorithm (gdso, sft, risd, opd), readable top to bottom; journal, held-out rows and push, which they
share; and what jobs bring to the launch frame (training, distillation, evaluation, audit, table)."""
