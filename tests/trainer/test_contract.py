"""Names inside TRL, PEFT, transformers and bitsandbytes that we rely on: these fail when they drift, never skip (pytest tests/trainer/test_contract.py)."""

import dataclasses
import inspect

import peft
import peft.helpers
import transformers
import trl
from bitsandbytes.nn import Linear4bit
from transformers import Gemma2Model, LlamaForCausalLM, PrinterCallback, TrainingArguments, masking_utils
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import dpo_trainer

from common.trainer.config import IGNORED_OPTIONS
from common.trainer.rdpo import RDPOTrainer


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_trl_is_the_pinned_minor():
    assert trl.__version__.startswith("1.16.")


def test_dpo_trainer_has_the_methods_that_we_replace():
    assert parameters(DPOTrainer._prepare_dataset) == ["self", "dataset", "processing_class", "args", "dataset_name"]
    assert parameters(DPOTrainer._compute_loss) == ["self", "model", "inputs", "return_outputs"]
    assert parameters(DPOTrainer.compute_ref_log_probs) == ["self", "model", "inputs"]
    assert parameters(DPOTrainer._set_signature_columns_if_needed) == ["self"]
    assert parameters(DPOTrainer._precompute_ref_logps) == ["self", "dataset", "name", "batch_size"]
    assert parameters(DPOTrainer._prepare_for_training) == ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"]
    assert parameters(DPOTrainer.create_accelerator_and_postprocess) == ["self"] and parameters(DPOTrainer._save_rng_state) == ["self", "output_dir"]
    assert [*parameters(DPOTrainer.__init__)[1:], "second_reference"] == parameters(RDPOTrainer.__init__)[1:]
    assert "self" in parameters(DPOTrainer._save) and "self" in parameters(DPOTrainer.evaluation_loop) and parameters(DPOTrainer.train)[0] == "self"


def test_dpo_trainer_source_still_calls_them():
    source = inspect.getsource(dpo_trainer)
    assert "self._compute_loss(model, inputs, return_outputs)" in source
    assert 'output["prompt_ids"] = prompt_ids[:prompt_len]' in source  # cut where prompt and completion part: how we notice
    assert "self.compute_ref_log_probs(model, padded_batch)" in source
    assert "self.train_dataset = self._precompute_ref_logps(" in source and "is_peft_model" in vars(dpo_trainer)
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in source
    assert "use_adapter" in vars(dpo_trainer) and 'model.add_adapter("ref", default_config)' in source and 'model.peft_config["default"]' in source
    for name in ("_is_vlm", "_tokenizer", "aux_loss_enabled", "router_aux_loss_coef", "precompute_ref_logps", "_total_train_tokens", "_tp_size"):
        assert f"self.{name} = " in source, name
    assert "self._metrics[mode]" in source and "outputs = model(**model_kwargs)" in source  # logits, where they are asked for
    assert "self._prepare_dataset(train_dataset, processing_class, args, " in source and "self._prepare_dataset(eval_dataset, self.processing_class, self.args, " in source


def test_the_model_card_is_made_of_three_attributes_and_checkpoints_pickle_the_settings():
    card = inspect.getsource(DPOTrainer.create_model_card)
    assert all(f"self.{name}" in card for name in ("_tag_names", "_name", "_paper")) and {"title", "id", "citation"} <= set(DPOTrainer._paper)
    assert "torch.save(self.args, " in inspect.getsource(transformers.Trainer._save)
    saves = inspect.getsource(transformers.Trainer._save_checkpoint)
    written = ["self.save_model(output_dir", "self._save_optimizer_and_scheduler(output_dir", "self._save_rng_state(output_dir", "os.path.join(output_dir, TRAINER_STATE_NAME)"]
    assert sorted(written, key=saves.index) == written and "self._get_output_dir(trial=trial)" in saves  # a checkpoint with a state is whole
    assert "on_pre_optimizer_step(self.args, self.state, self.control)\n                    self.optimizer.step()" in inspect.getsource(transformers.Trainer)


def test_models_tell_their_attention_and_take_another():
    assert parameters(transformers.PreTrainedModel.set_attn_implementation)[:2] == ["self", "attn_implementation"]
    assert transformers.GPT2Config(n_positions=64).max_position_embeddings == 64 and "aux_loss" in inspect.getsource(transformers.MixtralForCausalLM.forward)
    assert isinstance(peft.PeftModel.active_peft_config, property) and "is_prompt_learning" in dir(peft.PromptTuningConfig)


def test_collator_takes_our_arguments_and_keeps_three_columns():
    names = [field.name for field in dataclasses.fields(dpo_trainer.DataCollatorForPreference)]
    assert {"pad_token_id", "max_length", "truncation_mode"} <= set(names)
    assert {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(_constants(dpo_trainer.DataCollatorForPreference.torch_call))


def _constants(function):
    found, todo = set(), [function.__code__]
    while todo:
        code = todo.pop()
        found |= {constant for constant in code.co_consts if isinstance(constant, str)}
        todo += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return found


def test_options_that_we_refuse_or_set_exist():
    names = {field.name for field in dataclasses.fields(DPOConfig)}
    assert set(IGNORED_OPTIONS) | {"beta", "label_smoothing", "precompute_ref_log_probs", "max_length", "truncation_mode"} <= names
    assert {"max_length", "train_sampling_strategy", "logging_first_step"} <= {field.name for field in dataclasses.fields(SFTConfig)}
    assert "group_by_length" in inspect.getsource(TrainingArguments)


def test_trl_still_casts_qlora_adapters_to_bfloat16():
    assert "param.data = param.data.to(torch.bfloat16)" in inspect.getsource(DPOTrainer.__init__)


def test_sft_trainer_has_the_method_that_we_replace():
    assert parameters(SFTTrainer.compute_loss) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]


def test_models_score_only_the_last_positions_when_asked():
    assert "logits_to_keep" in parameters(LlamaForCausalLM.forward)


def test_models_take_our_masks_as_they_are_and_let_their_decoder_be_replaced():
    assert "isinstance(causal_mask_mapping := attention_mask, dict)" in inspect.getsource(Gemma2Model.forward)  # one mask per kind of layer
    assert "len(attention_mask.shape) == 4" in inspect.getsource(masking_utils._preprocess_mask_arguments)
    assert "outputs.last_hidden_state" in inspect.getsource(LlamaForCausalLM.forward) and LlamaForCausalLM.base_model_prefix == "model"
    assert issubclass(BaseModelOutputWithPast, ModelOutput)


def test_adapter_scaling_printing_and_gguf_exist():
    assert parameters(peft.helpers.rescale_adapter_scale) == ["model", "multiplier"]
    assert hasattr(PrinterCallback, "on_log")
    assert "dequantize" in parameters(transformers.GgufConfig.__init__)


def test_bitsandbytes_still_asks_before_repacking():
    assert "self.support_avx512bf16_for_cpu" in inspect.getsource(Linear4bit.forward)
