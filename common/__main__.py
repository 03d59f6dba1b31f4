"""The commands there are: python -m common"""

COMMANDS = {
    "common.batch": "run the notebooks of a profile through papermill",
    "common.storage.shards": "merge the shards of a run, which common.batch --shard made",
    "common.status": "how far a run is: notebooks, rows, remaining time, money",
    "common.doctor": "look at a file of pairs before training: faults, label noise, recommended method",
    "common.own_data": "train a chat model on a file of scored pairs and report before and after",
    "common.student.export": "merge an adapter into an ordinary model folder, compared with it; GGUF and Modelfile",
    "common.student.hub": "upload the folder of an adapter or a merged model to the Hub, private",
    "common.gate": "may this adapter be shipped? base and adapter on the same prompts, with an exit code",
    "common.audit": "label a few answers blind and see how far the judge's rates can be believed",
    "common.paraphrase": "other wordings of prompts: a trained paraphraser, Dynamic Blocking, a meaning check",
    "common.reversegen": "look for prompts that a student fails on: a proposer, a judge, training in rounds",
    "common.notebook.tune": "tune every method of a profile with the same budget",
    "common.study": "the study in the miniature: many seeds, teacher and judge wrong at known rates",
    "common.study.readings": "the study of both readings of refined DPO and of recipes, in the miniature",
    "common.study.related": "the study of the related systems, each beside its control, in the miniature",
    "common.evaluation.raters": "label a blind sample of scored pairs, or sum its labels up",
    "common.local": "the three steps with a teacher behind any server and a student that this machine trains",
    "common.profiles.local.prepare": "write the prompts of the profile `local`",
    "common.profiles.small.prepare": "download the data of the profile `small` and make its students",
    "common.profiles.small.organism": "train the student of `small` that follows a stance",
}


def main() -> None:
    width = max(map(len, COMMANDS))
    for name, does in COMMANDS.items():
        print(f"python -m {name:<{width}}  {does}")
    print("each takes --help")


if __name__ == "__main__":
    main()
