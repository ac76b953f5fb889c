from training.recipe import study_run

run = study_run("swin", "self", "smit")
