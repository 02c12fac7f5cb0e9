"""Real architectures with random weights, and which of their matrices belong to Muon: written down by hand.

Patterns are those of shells for whole names; ``*`` goes over dots. Every parameter of 2 or more dimensions matches
patterns of exactly one of both lists; the others go to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Architecture(NamedTuple):
    """A model, and which of its parameters of 2 or more dimensions go where."""

    package: str
    build: Callable[[Any], nn.Module]
    muon: tuple[str, ...]
    adamw: tuple[str, ...]


TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
IMAGES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}
EXPERTS: dict[str, Any] = {**TEXT, "num_key_value_heads": 1}
GPT2: dict[str, Any] = {
    "vocab_size": 50,
    "n_positions": 16,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
TIMM_VIT: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
BERT_LAYERS = ("*.attention.self.*.weight", "*.attention.output.dense.weight", "*.?.intermediate.dense.weight")
BERT_LAYERS = (*BERT_LAYERS, "bert.encoder.layer.?.output.dense.weight")
BERT_EMBEDDINGS = tuple(f"*.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
LLAMA_ATTENTION = ("model.layers.*.self_attn.?_proj.weight",)
LLAMA_MLP = tuple(f"model.layers.?.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
CLIP_BLOCKS = ("*_model.encoder.layers.?.self_attn.*proj.weight", "*_model.encoder.layers.?.mlp.fc?.weight")
TIMM_BLOCKS = ("*blocks.?.attn.qkv.weight", "*blocks.?.attn.proj.weight", "*blocks.?.mlp.fc?.weight")
RESNET = ("*layer?.?.conv?.weight", "*layer?.0.downsample.0.weight")


def whisper(t: Any) -> nn.Module:
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8}
    lengths = {"max_source_positions": 8, "max_target_positions": 8, "vocab_size": 50}
    tokens = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "decoder_start")}
    return t.WhisperForConditionalGeneration(t.WhisperConfig(**sizes, **widths, **lengths, **tokens))


def wav2vec2(t: Any) -> nn.Module:
    convolutions = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**TEXT, **convolutions, **positions))


def segformer(t: Any) -> nn.Module:
    config = t.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
    )
    return t.SegformerForSemanticSegmentation(config)


def clip(t: Any) -> nn.Module:
    text = {**TEXT, "max_position_embeddings": 8, "projection_dim": 8}
    vision = {**IMAGES, "projection_dim": 8}
    return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def deberta(t: Any) -> nn.Module:
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]}
    return t.DebertaV2ForQuestionAnswering(t.DebertaV2Config(**TEXT, **relative))


def unet(d: Any) -> nn.Module:
    return d.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )


def dit(d: Any) -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2}
    return d.DiTTransformer2DModel(**sizes, sample_size=8, patch_size=2, norm_num_groups=4)


def sd3(d: Any) -> nn.Module:
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 16}
    return d.SD3Transformer2DModel(**sizes, **heads, pooled_projection_dim=8, pos_embed_max_size=8)


def lora(peft: Any) -> nn.Module:
    import transformers

    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    return peft.get_peft_model(model, config)


ARCHITECTURES: dict[str, Architecture] = {
    "GPT-2, tied": Architecture(
        "transformers",
        lambda t: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
        ("transformer.h.?.attn.c_*.weight", "transformer.h.?.mlp.c_*.weight"),
        ("transformer.wte.weight", "transformer.wpe.weight"),
    ),
    "GPT-2, classifier": Architecture(
        "transformers",
        lambda t: t.GPT2ForSequenceClassification(t.GPT2Config(**GPT2)),
        ("transformer.h.?.attn.c_*.weight", "transformer.h.?.mlp.c_*.weight"),
        ("transformer.wte.weight", "transformer.wpe.weight", "score.weight"),
    ),
    "BERT, masked": Architecture(
        "transformers",
        lambda t: t.BertForMaskedLM(t.BertConfig(**TEXT)),
        (*BERT_LAYERS, "cls.predictions.transform.dense.weight"),
        BERT_EMBEDDINGS,
    ),
    "BERT, classifier": Architecture(
        "transformers",
        lambda t: t.BertForSequenceClassification(t.BertConfig(**TEXT)),
        (*BERT_LAYERS, "bert.pooler.dense.weight"),
        (*BERT_EMBEDDINGS, "classifier.weight"),
    ),
    "ALBERT": Architecture(
        "transformers",
        lambda t: t.AlbertForMaskedLM(t.AlbertConfig(embedding_size=8, **TEXT)),
        ("*.albert_layers.0.attention.*.weight", "*.albert_layers.0.ffn*.weight", "predictions.dense.weight"),
        (*BERT_EMBEDDINGS, "albert.encoder.embedding_hidden_mapping_in.weight"),
    ),
    "DeBERTa-v2, answers": Architecture(
        "transformers",
        deberta,
        ("*.self.*_proj.weight", "*.layer.?.*output.dense.weight", "*.layer.?.intermediate.dense.weight"),
        ("*.word_embeddings.weight", "*.position_embeddings.weight", "*.rel_embeddings.weight", "qa_outputs.weight"),
    ),
    "Llama": Architecture(
        "transformers",
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(**TEXT)),
        (*LLAMA_ATTENTION, *LLAMA_MLP),
        ("model.embed_tokens.weight", "lm_head.weight"),
    ),
    "Mixtral": Architecture(
        "transformers",
        lambda t: t.MixtralForCausalLM(t.MixtralConfig(num_local_experts=4, **EXPERTS)),
        (*LLAMA_ATTENTION, "model.layers.?.mlp.experts.*_proj"),
        ("model.embed_tokens.weight", "model.layers.?.mlp.gate.weight", "lm_head.weight"),
    ),
    "Qwen2-MoE": Architecture(
        "transformers",
        lambda t: t.Qwen2MoeForCausalLM(
            t.Qwen2MoeConfig(num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8, **EXPERTS)
        ),
        (*LLAMA_ATTENTION, "model.layers.?.mlp.experts.*_proj", "model.layers.?.mlp.shared_expert.*_proj.weight"),
        ("model.embed_tokens.weight", "*.mlp.gate.weight", "*.mlp.shared_expert_gate.weight", "lm_head.weight"),
    ),
    "T5": Architecture(
        "transformers",
        lambda t: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        ("*.SelfAttention.[qkvo].weight", "*.EncDecAttention.[qkvo].weight", "*.DenseReluDense.w?.weight"),
        ("shared.weight", "*.relative_attention_bias.weight"),
    ),
    "Whisper": Architecture(
        "transformers",
        whisper,
        ("model.encoder.conv2.weight", "*.layers.?.*_attn.*_proj.weight", "*.layers.?.fc?.weight"),
        ("model.encoder.conv1.weight", "*.embed_positions.weight", "model.decoder.embed_tokens.weight"),
    ),
    "wav2vec 2.0": Architecture(
        "transformers",
        wav2vec2,
        (
            "*.conv_layers.1.conv.weight",
            "*.feature_projection.projection.weight",
            "*.attention.*_proj.weight",
            "*.feed_forward.*_dense.weight",
        ),
        ("*.conv_layers.0.conv.weight", "*.pos_conv_embed.conv.parametrizations.weight.original?", "lm_head.weight"),
    ),
    "Mamba": Architecture(
        "transformers",
        lambda t: t.MambaForCausalLM(
            t.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2)
        ),
        ("*.mixer.in_proj.weight", "*.mixer.x_proj.weight", "*.mixer.dt_proj.weight", "*.mixer.out_proj.weight"),
        ("backbone.embeddings.weight", "*.mixer.A_log", "*.mixer.conv1d.weight"),
    ),
    "ViT of transformers": Architecture(
        "transformers",
        lambda t: t.ViTForImageClassification(t.ViTConfig(**IMAGES)),
        ("*.attention.*.weight", "*.mlp.fc?.weight"),
        ("*.cls_token", "*.position_embeddings", "*.patch_embeddings.projection.weight", "classifier.weight"),
    ),
    "CLIP": Architecture(
        "transformers",
        clip,
        CLIP_BLOCKS,
        ("*_model.embeddings.*_embedding.weight", "text_projection.weight", "visual_projection.weight"),
    ),
    "SegFormer": Architecture(
        "transformers",
        segformer,
        (
            "*.attention.*.weight",
            "*.mlp.fc?.weight",
            "decode_head.linear_projections.?.proj.weight",
            "decode_head.linear_fuse.weight",
        ),
        ("*.patch_embeddings.proj.weight", "*.mlp.dwconv.dwconv.weight", "decode_head.classifier.weight"),
    ),
    "BERT with LoRA": Architecture(
        "peft",
        lora,
        (
            "*.query.base_layer.weight",
            "*.value.base_layer.weight",
            "*.key.weight",
            "*.output.dense.weight",
            "*.intermediate.dense.weight",
            "*.pooler.dense.weight",
            "*.classifier.original_module.weight",  # frozen
        ),
        (*BERT_EMBEDDINGS, "*.lora_?.default.weight", "*.classifier.modules_to_save.default.weight"),
    ),
    "UNet of Stable Diffusion": Architecture(
        "diffusers",
        unet,
        (
            "*.attn?.to_[qkv].weight",
            "*.attn?.to_out.0.weight",
            "*.ff.net.*weight",
            "*.proj_in.weight",
            "*.proj_out.weight",
            "*.resnets.?.conv*.weight",
            "*.time_emb_proj.weight",
            "*samplers.0.conv.weight",
        ),
        ("conv_in.weight", "time_embedding.linear_?.weight", "conv_out.weight"),
    ),
    "autoencoder of Stable Diffusion": Architecture(
        "diffusers",
        lambda d: d.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1),
        ("*.attentions.0.to_*.weight", "*.resnets.?.conv?.weight", "quant_conv.weight", "post_quant_conv.weight"),
        ("*coder.conv_in.weight", "*coder.conv_out.weight"),
    ),
    "DiT": Architecture(
        "diffusers",
        dit,
        ("*.norm1.linear.weight", "*.attn1.to_*.weight", "*.ff.net.*weight"),
        (
            "pos_embed.proj.weight",
            "*.emb.timestep_embedder.linear_?.weight",
            "*.emb.class_embedder.embedding_table.weight",
            "proj_out_?.weight",
        ),
    ),
    "Stable Diffusion 3": Architecture(
        "diffusers",
        sd3,
        (
            "*.norm1*.linear.weight",
            "*.attn.to_*.weight",
            "*.attn.add_?_proj.weight",
            "*.ff*.net.*weight",
            "norm_out.linear.weight",
        ),
        ("pos_embed.proj.weight", "time_text_embed.*.weight", "context_embedder.weight", "proj_out.weight"),
    ),
    "ViT of timm": Architecture(
        "timm",
        lambda timm: timm.create_model("vit_tiny_patch16_224", **TIMM_VIT),
        TIMM_BLOCKS,
        ("cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight"),
    ),
    "DeiT of timm": Architecture(
        "timm",
        lambda timm: timm.create_model("deit_tiny_distilled_patch16_224", **TIMM_VIT),
        TIMM_BLOCKS,
        ("cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "head.weight", "head_dist.weight"),
    ),
    "Swin of timm": Architecture(
        "timm",
        lambda timm: timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=16,
            window_size=2,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 2),
            num_classes=5,
        ),
        (*TIMM_BLOCKS, "layers.1.downsample.reduction.weight"),
        ("patch_embed.proj.weight", "*.relative_position_bias_table", "head.fc.weight"),
    ),
    "ConvNeXt of timm": Architecture(
        "timm",
        lambda timm: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5),
        ("stages.?.blocks.0.mlp.fc?.weight", "stages.?.downsample.1.weight"),
        ("stem.0.weight", "stages.?.blocks.0.conv_dw.weight", "head.fc.weight"),
    ),
    "ResNet of torchvision": Architecture(
        "torchvision",
        lambda tv: tv.models.resnet18(num_classes=5),
        RESNET,
        ("conv1.weight", "fc.weight"),
    ),
    "VGG of torchvision": Architecture(
        "torchvision",
        lambda tv: tv.models.VGG(tv.models.vgg.make_layers([8, "M", 16, "M"]), num_classes=5),
        ("features.3.weight", "classifier.0.weight", "classifier.3.weight"),
        ("features.0.weight", "classifier.6.weight"),
    ),
    "ViT of torchvision": Architecture(
        "torchvision",
        lambda tv: tv.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5),
        ("*.self_attention.in_proj_weight", "*.self_attention.out_proj.weight", "*.mlp.?.weight"),
        ("class_token", "conv_proj.weight", "encoder.pos_embedding", "heads.head.weight"),
    ),
    "FCN of torchvision": Architecture(
        "torchvision",
        lambda tv: tv.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=5),
        (*(f"backbone.{each.removeprefix('*')}" for each in RESNET), "classifier.0.weight"),
        ("backbone.conv1.weight", "classifier.4.weight"),
    ),
}
