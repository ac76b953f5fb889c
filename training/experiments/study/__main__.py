"""`python -m training.experiments.study`."""

from training.experiments.study.tables import main

main()
