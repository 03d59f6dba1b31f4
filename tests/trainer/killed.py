"""Small preference trainings in one process or several, with random dropout, that are killed and go on: for tests and
`reliability.py`. Processes are forks, so that libraries are loaded once."""

import os
import random
import signal
import socket
import time
import traceback
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from common.runtime import quiet_libraries
from common.trainer.config import RDPOConfig
from common.trainer.prepare import last_whole_checkpoint
from common.trainer.rdpo import RDPOTrainer

LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear", "lora_dropout": 0.2}


def trainer_for(model, folder, **options):
    """Six steps, of which an epoch has three, with random dropout; a checkpoint after every second."""
    said = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows = [{"prompt": said("user", f"Is tea {i} nice?"), "chosen": said("assistant", f"Yes, {i} is."), "rejected": said("assistant", "No.")} for i in range(12)]
    args = RDPOConfig(
        str(folder), method="dpo", use_cpu=True, gradient_checkpointing=False, per_device_train_batch_size=2, num_train_epochs=2,
        learning_rate=1e-2, save_steps=2, logging_steps=1, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        **{"gradient_accumulation_steps": 2, "disable_dropout": False, "bf16": False, **options},
    )  # fmt: skip
    quiet_libraries()
    data, base = Dataset.from_list(rows), model.get_base_model() if isinstance(model, PeftModel) else model
    return RDPOTrainer(
        model, args=args, train_dataset=data, eval_dataset=data.select([0]) if "eval_strategy" in options else None,
        processing_class=AutoTokenizer.from_pretrained(base if isinstance(base, str) else base.name_or_path), peft_config=LoraConfig(**LORA) if base is model else None,
    )  # fmt: skip


def shards_on_a_cpu():
    """Accelerate spreads models over accelerators alone; from here on also over processes on a CPU."""
    begin = AcceleratorState.__init__

    def spread(self, *args, fsdp_plugin=None, **kwargs):
        new = not AcceleratorState._shared_state
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if new and fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = spread


def started(processes, work):
    """Ids of so many processes, which do `work` as one training."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        if not (child := os.fork()):
            try:
                torch.set_num_threads(1)  # the others are not in a fork
                if processes > 1:
                    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{processes}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
                AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, of one process
                GradientState._reset_state()
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    return children


def ended(children):
    """What the processes ended with: 0, 1 for an error, or minus the signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill(children):
    for child in children:
        os.kill(child, signal.SIGKILL)
    return ended(children)


class Steps(TrainerCallback):
    """One byte a step, for whoever watches the file."""

    def __init__(self, path):
        self.path = path
        path.write_bytes(b"")

    def on_step_end(self, args, state, control, **kwargs):
        with open(self.path, "ab") as file:
            file.write(b".")


def train(model, folder, **options):
    """Trains from the last whole checkpoint on, if there is one; what was trained and the losses go to `trained.pt`."""
    if options.get("fsdp"):
        shards_on_a_cpu()
    trainer = trainer_for(model, folder, **options)
    trainer.remove_callback(PrinterCallback)
    if trainer.accelerator.is_main_process:
        trainer.add_callback(Steps(Path(folder, "steps")))
    try:
        last_whole_checkpoint(folder)
    except ValueError:
        trainer.train()
    else:
        trainer.train(resume_from_checkpoint=True)
    weights = {name: parameter.data for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    weights = {name: values.full_tensor() if isinstance(values, DTensor) else values for name, values in weights.items()}
    losses = [step[name] for step in trainer.state.log_history for name in ("loss", "eval_loss") if name in step]
    if trainer.accelerator.is_main_process:
        torch.save({"weights": weights, "losses": losses}, Path(folder, "trained.pt"))
    return trainer


def result(folder):
    return torch.load(Path(folder, "trained.pt"))


def equal(folder, other):
    one, two = result(folder), result(other)
    return one["losses"] == two["losses"] and one["weights"].keys() == two["weights"].keys() and all(torch.equal(two["weights"][name], values) for name, values in one["weights"].items())


def killed_at_random(model, folder, processes, kills, per_life=3, seed=0, **options):
    """Figures of a training whose processes are all killed at so many random moments, `per_life` steps apart on average,
    and of what it ends with, beside the same training left alone."""
    chance, options = random.Random(seed), {"max_steps": 2 * per_life * kills + 2, "save_total_limit": 3, **options}
    whole, at, torn = Path(folder, "whole"), Path(folder, "killed"), 0
    for path in (whole, at):
        path.mkdir(parents=True)
    assert set(ended(started(processes, lambda: train(model, whole, **options)))) == {0}
    for number in range(kills):
        (at / "steps").unlink(missing_ok=True)
        children, steps = started(processes, lambda: train(model, at, **options)), chance.randint(1, 2 * per_life - 1)
        while not (at / "steps").exists() or (at / "steps").stat().st_size < steps:
            if any(os.waitpid(child, os.WNOHANG)[0] for child in children):
                raise RuntimeError(f"the training ended by itself after {number} kills")
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))  # into the next step, or into the writing of a checkpoint
        kill(children)
        torn += any(not (path / "trainer_state.json").exists() for path in at.glob("checkpoint-*"))
    assert set(ended(started(processes, lambda: train(model, at, **options)))) == {0}
    return {"kills": kills, "steps": options["max_steps"], "while_a_checkpoint_was_written": torn, "equal_to_uninterrupted": equal(whole, at)}
