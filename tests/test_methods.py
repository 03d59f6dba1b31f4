"""SFT and dSC against TRL's own trainer (pytest tests/test_methods.py)."""

import torch
from trl import SFTTrainer

from common.methods import TrainSettings, _supervised_trainer


def test_sft_equals_trl_on_the_same_batch(load_micro, pairs, tmp_path):
    trainer, used = _supervised_trainer("sft", *load_micro(), pairs, TrainSettings(batch_size=8), tmp_path)
    assert used == len(pairs)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.05
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["attention_mask"] == 0).any() and (batch["labels"] == -100).any()
    for tokens in (None, torch.tensor(100)):  # the batch's own, or those of a step with gradient accumulation
        found = []
        for compute in (type(trainer).compute_loss, SFTTrainer.compute_loss):
            trainer.model.zero_grad()
            loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=tokens)
            loss.backward()
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])))
        (our_loss, our_gradient), (their_loss, their_gradient) = found
        assert abs(our_loss - their_loss) <= 1e-5 * their_loss
        assert (our_gradient - their_gradient).norm() <= 1e-4 * their_gradient.norm() > 0
