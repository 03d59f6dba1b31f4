"""Endpoints by the provider they are at: one YAML file for all that a run asks.

    together: {base_url: https://api.together.xyz/v1, api_key_env: TOGETHER_API_KEY, prices: [0.6, 0.6], max_cost: 20}
    openai: {prices: [30, 60]}

`endpoint:together/mistralai/Mixtral-8x7B-Instruct-v0.1` is then asked there, and `endpoint:MODEL` at the first provider
of the file.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.chat.endpoint import EndpointChat
from common.chat.pacing import Budget
from common.runtime import nearest, resolve, shortened, yaml_file

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Provider(BaseModel):
    """Where models are asked, and at what price.

    base_url: of any endpoint that is compatible with OpenAI's. api_key_env: name of the environment variable with the
    key, never the key; "" for none. concurrency: conversations at a time. prices: dollars per million prompt tokens and
    per million completion tokens.
    max_cost: dollars at which a model is asked no more, 0 for no limit; each model of a run has its own count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(16, ge=1)
    prices: tuple[Price, Price] = (0.0, 0.0)
    max_cost: Price = 0.0

    @model_validator(mode="after")
    def _can_be_asked(self) -> Provider:
        if "base_url" in self.model_fields_set and "api_key_env" not in self.model_fields_set:
            raise ValueError(
                'a base_url needs api_key_env beside it, the name of the variable with its key, or "" for none'
            )
        self.chat("a model")
        return self

    def chat(self, model: str) -> EndpointChat:
        return EndpointChat(
            model,
            self.base_url,
            self.api_key_env,
            self.concurrency,
            prices=list(self.prices),
            max_cost=self.max_cost or None,
        )


def read_providers(path: str) -> dict[str, Provider]:
    """The providers of a file, in its order; OpenAI alone where no file is named. Raises ValueError naming file,
    provider and field."""
    if not path:
        return {"openai": Provider()}
    if not (found := yaml_file("providers", path)):
        raise ValueError(f"providers: {path} is empty; it must hold NAME: {{base_url: ..., api_key_env: ...}}")
    return {str(name): _provider(path, str(name), fields) for name, fields in found.items()}


def endpoint_named(name: str, path: str) -> EndpointChat:
    """The model `PROVIDER/MODEL` at that provider of the file, or `MODEL` at the file's first one. Raises ValueError
    for what looks like a misspelt provider: nobody should be asked, or paid, by mistake. Whatever roles a model has in
    this process, they share its `max_cost`."""
    providers = read_providers(path)
    provider, _, model = name.partition("/")
    if provider in providers and model:
        return _within_budget(path, provider, providers[provider].chat(model))
    if model and path and (hint := nearest(provider, providers, cutoff=0.75)):
        raise ValueError(
            f"endpoint:{name}: {path} has no provider {provider}{hint} A model of that name is asked as endpoint:{next(iter(providers))}/{name}"
        )
    first = next(iter(providers))
    return _within_budget(path, first, providers[first].chat(name))


_BUDGETS: dict[tuple[str, str, str], Budget] = {}
"""Of every file, provider and model that was asked in this process."""


def _within_budget(path: str, provider: str, chat: EndpointChat) -> EndpointChat:
    shared = _BUDGETS.setdefault((str(resolve(path)), provider, chat.model), chat.budget)
    shared.limit, chat.budget = chat.budget.limit, shared
    return chat


def _provider(path: str, name: str, fields: Any) -> Provider:
    if not isinstance(fields, dict | None):
        raise ValueError(f"providers: {path}, {name}: expected fields such as base_url, got {shortened(fields)}")
    try:
        return Provider(**(fields or {}))
    except ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:
            raise ValueError(f"providers: {path}, {name}: {problem['msg'].removeprefix('Value error, ')}") from None
        field = str(problem["loc"][0])
        if problem["type"] != "extra_forbidden":
            raise ValueError(
                f"providers: {path}, {name}, {field} = {shortened(problem['input'])}: {problem['msg'].lower()}"
            ) from None
        keys = "; keys are not written into files: name their environment variable as api_key_env"
        hint = keys if "key" in field else nearest(field, Provider.model_fields)
        raise ValueError(
            f"providers: {path}, {name}: no field {field}{hint}; there are {', '.join(Provider.model_fields)}"
        ) from None
