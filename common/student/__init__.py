"""Students: loading in 4 bits, LoRA adapters, identity."""

from common import hand_on

__all__, __getattr__ = hand_on(
    __name__,
    {"load_student": "load", "lora_settings": "adapters", "load_adapter": "adapters", "export_merged": "export"},
)
