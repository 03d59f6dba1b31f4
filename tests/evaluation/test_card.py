"""Model cards that the Hub reads: base, license, data, figures (pytest tests/evaluation/test_card.py)."""

import pytest
from huggingface_hub import ModelCard

from common.evaluation.card import card
from common.evaluation.result import Result
from common.methods import TrainSettings
from common.schema import Metric
from common.student import hub

METRIC = Metric(experiment="own_data", method="rdpo", seed=3, metric="reward_accuracy", value=0.75, low=0.5, high=0.9, n=40)
RESULT = Result("rdpo", 3, "", [METRIC], split="test", pairs_used=160, unscored=2, settings={"beta": 0.1, "alpha": 2.0, "strength": 0.5})


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """A base on the Hub whose card is in the cache."""
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: house\nlicense_link: LICENSE\ndatasets: [someone/else]\n---\n# base\n")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, revision: str(tmp_path / file))
    monkeypatch.setattr(hub, "commit_of", lambda name: "c" * 40)


def test_a_base_on_the_hub_is_linked_by_owner_and_name_with_its_license(at_hand):
    data = ModelCard(card("owner/base-model", TrainSettings(), RESULT)).data
    assert (data.base_model, data.license, data.license_name, data.license_link) == ("owner/base-model", "other", "house", "LICENSE")
    assert data.datasets is None and data.library_name == "peft" and data.tags == ["lora", "dpo", "rdpo"]


def test_a_local_folder_is_no_base_model_and_is_named_in_the_text(tmp_path):
    folder = tmp_path / "my-student"
    folder.mkdir()
    made = ModelCard(card(folder, TrainSettings(), RESULT))
    assert made.data.base_model is None and made.data.license is None and "LoRA adapter for `my-student, a local folder`" in made.text and str(tmp_path) not in str(made)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert ModelCard(card(folder, TrainSettings(), RESULT)).data.license == "apache-2.0"


@pytest.mark.parametrize("broken", ["---\n- a list\n---\n", "---\nlicense: [\n---\n", "no metadata"])
def test_a_base_whose_card_is_broken_has_no_known_license(broken, tmp_path):
    (tmp_path / "README.md").write_text(broken)
    assert hub.of_the_base(tmp_path) == {}


def test_a_base_that_is_nowhere_at_hand_is_linked_without_a_license(monkeypatch):
    def nowhere(*args, **more):
        raise FileNotFoundError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", nowhere)
    monkeypatch.setattr(hub, "commit_of", lambda name: None)
    assert hub.of_the_base("owner/model") == {"base_model": "owner/model"}


def test_figures_are_a_model_index_and_settings_and_strength_are_told(at_hand, tmp_path):
    (tmp_path / "rows.csv").write_text("")
    made = ModelCard(card("owner/base", TrainSettings(), RESULT, "pairs", str(tmp_path / "rows.csv")))
    [figure] = made.data.eval_results
    assert made.data.model_name == "rdpo, seed 3"
    assert (figure.metric_type, figure.metric_value, figure.dataset_name, figure.dataset_type, figure.dataset_split) == ("reward_accuracy", 0.75, "rows.csv", "own_data", "test")
    assert figure.metric_args == {"n": 40, "low": 0.5, "high": 0.9}
    for said in ("trained with `rdpo` (rDPO (offset)) on 160 pairs of rows.csv (2 unscored ones left out).", "Strength (lambda): 0.5, where 1 is as trained", "- alpha: 2.0", "- reward_accuracy: 0.750 [0.500, 0.900], n = 40"):
        assert said in made.text
    assert "- strength" not in made.text and str(tmp_path) not in str(made)


def test_a_hub_dataset_is_linked_and_a_file_is_none(at_hand, tmp_path):
    for source in ("owner/pairs@abc", "owner/pairs/train@abc"):
        made = ModelCard(card("owner/base", TrainSettings(), RESULT, "pairs", source))
        assert made.data.datasets == ["owner/pairs"] and made.data.eval_results[0].dataset_type == "owner/pairs" and "pairs of owner/pairs" in made.text
    (tmp_path / "pairs.csv").write_text("")
    assert ModelCard(card("owner/base", TrainSettings(), RESULT, "pairs", str(tmp_path / "pairs.csv"))).data.datasets is None
