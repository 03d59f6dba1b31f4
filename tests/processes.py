"""A few steps of refined DPO (rDPO) in as many processes as the launcher starts; test_trainer.py runs it.

    python -m torch.distributed.run --nproc_per_node 2 tests/processes.py STUDENT SCORED.jsonl OUTPUT PAIRS_PER_PROCESS
"""

import sys

import torch

from common.data.preference import preference_dataset
from common.runtime import quiet_libraries
from common.schema import ScoredPair
from common.storage import read_records
from common.student.adapters import lora_settings
from common.student.load import load_student
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer

if __name__ == "__main__":
    quiet_libraries()
    torch.set_num_threads(1)
    student, scored, output, pairs_per_process = sys.argv[1:]
    model, tokenizer = load_student(student, compute_dtype=torch.float32)
    settings = RDPOConfig(
        output_dir=output, per_device_train_batch_size=int(pairs_per_process), max_steps=3, learning_rate=1e-3, max_length=256, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = RDPOTrainer(model, args=settings, train_dataset=preference_dataset(read_records(scored, ScoredPair)), processing_class=tokenizer, peft_config=lora_settings(8))
    trainer.train()
    if trainer.accelerator.is_main_process:
        trainer.model.save_pretrained(f"{output}/adapter")
