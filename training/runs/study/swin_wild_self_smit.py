from training.recipe import study_run

run = study_run("swin", "wild-self", "smit")
