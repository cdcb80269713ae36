"""Configuration of `jobs/builtin/pretrain_generator.py`; every field states meaning, unit and the origin of its
default."""

from __future__ import annotations

from pydantic import Field, model_validator

from zr_ray.config.sections import Section


class DefectsSection(Section):
    """How often training scenes are off (`generator_scenes.Defects`), as shares of scenes."""

    floating: float = Field(0.08, ge=0, le=1, description="an object hangs in the air")
    shadow_wrong: float = Field(0.08, ge=0, le=1, description="shadows on the sun's side")
    overlap: float = Field(0.05, ge=0, le=1, description="two objects interpenetrate (share of pairs)")
    degraded: float = Field(0.15, ge=0, le=1, description="one degradation of realism or aesthetics")
    max_level: float = Field(0.5, ge=0.2, le=1, description="highest level of a degradation")


class CodecSection(Section):
    """The linear codec (`patch_codec.fit_codec`)."""

    channels: int = Field(16, ge=1, le=48, description="numbers per 4x4-pixel latent position")
    whitening: float = Field(0.5, ge=0, le=1, description="0 natural spread of the channels, 1 equal spread")
    scenes: int = Field(1500, ge=64, description="scenes it is fitted on")
    steps: int = Field(300, ge=0, description="Adam steps of the joint fit")


class ModelSection(Section):
    """Sizes of the transformer and the text encoder (`tiny_generator.GeneratorSizes`)."""

    width: int = Field(144, ge=24, description="of the transformer")
    layers: int = Field(5, ge=1, description="main layers")
    refiner_layers: int = Field(1, ge=1, description="layers of each refiner")
    heads: int = Field(4, ge=1, description="attention heads")
    text_width: int = Field(64, ge=32, multiple_of=32, description="of the text encoder, a multiple of 32")
    text_layers: int = Field(3, ge=2, description="of the text encoder; the last one is never read")
    shift: float = Field(3.0, gt=0, description="static shift of the noise levels, in training and in the scheduler")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> ModelSection:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of twice the heads ({2 * self.heads}), got {self.width}; rotary numbers come"
                " in pairs"
            )
        return self


class FlowSection(Section):
    """The flow-matching loss."""

    level_mean: float = Field(
        0.0, description="mean of the normal under the logit-normal noise level, before the shift"
    )
    level_spread: float = Field(1.0, gt=0, description="its standard deviation")
    caption_dropout: float = Field(0.1, ge=0, lt=1, description="share of empty prompts, for classifier-free guidance")
    map_weight: float = Field(0.25, ge=0, description="weight of the auxiliary object-map loss; 0 leaves it out")
    map_layer: int = Field(2, ge=0, description="main layer whose image tokens predict the object map")


class OptimizerSection(Section):
    """Muon on the matrices of attention and feed-forward, AdamW on the rest; constant, then linearly to 0 with the
    time."""

    matrix_learning_rate: float = Field(8e-4, gt=0, description="of Muon: root-mean-square size of an element's update")
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW")
    batch: int = Field(32, ge=2, description="scenes a step")
    warmup_steps: int = Field(100, ge=0, description="linear warm-up")
    decay_from: float = Field(0.6, ge=0, le=1, description="share of --minutes after which the learning rate falls")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="of the averaged weights, which are what is shipped")
    clip_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this")


class CadenceSection(Section):
    """When something is written, minutes of training."""

    checkpoint_min: float = Field(1.0, gt=0, description="checkpoint and pipeline folder; what a kill may cost")
    grid_min: float = Field(2.0, gt=0, description="image grid of 16 prompts, and held-out losses")
    metrics_steps: int = Field(25, ge=1, description="steps per line of metrics.jsonl")
    grid_steps: int = Field(8, ge=1, description="sampling steps of the grid")
    grid_guidance: float = Field(1.5, ge=0, description="guidance of the grid: pos + w (pos - neg)")


class PretrainGeneratorConfig(Section):
    """The whole job."""

    seed: int = Field(0, ge=0, description="of weights, codec, scenes and noise")
    compiled: bool = Field(True, description="compile the transformer's blocks (needs a C++ compiler on CPU)")
    defects: DefectsSection = DefectsSection()
    codec: CodecSection = CodecSection()
    model: ModelSection = ModelSection()
    flow: FlowSection = FlowSection()
    optimizer: OptimizerSection = OptimizerSection()
    cadence: CadenceSection = CadenceSection()

    @model_validator(mode="after")
    def _map_layer_is_there(self) -> PretrainGeneratorConfig:
        if self.flow.map_layer >= self.model.layers:
            raise ValueError(
                f"flow.map_layer must be below model.layers ({self.model.layers}), got {self.flow.map_layer}; layers"
                " count from 0"
            )
        return self
