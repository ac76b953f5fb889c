"""What was measured with the models. Everything in `results/` was written by one of these commands.

| module | measures | goes into |
|---|---|---|
| `lung` | few labels: fine-tuning on one collection of lung tumours, judged on another | RESULTS, README, cards |
| `head_neck` | the same for seven organs | RESULTS |
| `lung_tumour`, `chests` | segmenters of lung tumours that are released, in boxes and in whole chests | RESULTS, cards |
| `sarcoma`, `lung_nodules`, `middle` | earlier tasks; how much of a task is position alone | RESULTS |
| `probe` | frozen features of single voxels | RESULTS, cards |
| `robustness` | the study: all labels, many starts, simulated imaging differences | STUDY |
| `kernels` | the study: two reconstructions of one acquisition | STUDY |
| `shifts_proof` | whether the kernel shift is true to real pairs | `docs/shifts.md` |

What they share: `trials` (train, keep a row for each training, make a table), `pictures`
(README's), `lesion_sheet` (forty pasted lesions). `study/` is the study: who takes part, on which patients, what follows.

An *experiment* is a task with its settings; a *trial* is one training of it, with one seed. A *start* is what a training
starts from (weights, or none); a *contestant* of the study is a start with what else differs from the usual training.
"""
