"""The paper's claims on the paper's public patients: `python -m training.experiments.study` writes `model_cards/STUDY.json`,
`STUDY.md` and its pictures.

`contestants` (the starts), `patients` (to learn from and to judge on, under every shift), `boxes` (score many at once), `rows`
(what was measured: one for each training), `measured` (compare them), `claims` (the paper's), `tables` (what follows), `page`
(STUDY.md and its pictures). `training.experiments.robustness` trains.
"""
