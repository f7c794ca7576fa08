"""Configuration of sampling (no torch here)."""

from pydantic import Field

from finetrial.records import Config


class SamplingConfig(Config):
    """How completions are drawn. The filters apply in this order: temperature, top_k, top_p, min_p."""

    max_tokens: int = Field(default=128, ge=1, description="most tokens of a completion")
    temperature: float = Field(default=1.0, ge=0, description="divides the logits; 0 takes the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="keep the likeliest tokens that reach this mass")
    top_k: int = Field(default=0, ge=0, description="keep so many likeliest tokens; 0 keeps all")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="drop tokens below this share of the likeliest one")
    stop: tuple[str, ...] = Field(default=(), description="texts that end a completion beside the end-of-turn token")
