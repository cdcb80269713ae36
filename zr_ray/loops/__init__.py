"""One loop per algorithm (gdso, sft, risd, opd), readable top to bottom; what they share (journal, held-out rows, weight
push); and what the jobs bring to the launch frame (training, distillation, evaluation, audit, table)."""
