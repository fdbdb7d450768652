"""Every field of every stage's settings is decided: it changes what is made, or it is free. A new field belongs in this table."""

import dataclasses
import importlib
import pkgutil

import pytest

import semantica
from semantica.config.door import FREE

# Class: fields that decide the result; fields that are free. A section that is free is free as a whole.
DECIDED = {
    "ApplyConfig": (
        "samples_per_picture guidance similarity sampler num_steps beyond speed batch_size seed strength repeats factor until "
        "resample jump num noise num_iterations",
        "",
    ),
    "BandConfig": ("low high score", ""),
    "ComputeConfig": ("precision", "channels_last compile recompute parallel shard_workers"),
    "DenoiserConfig": (
        "resolution_px channels patch_px stages conditioning token_dim num_tokens pooled_dim noise_embedding_dim head_dim "
        "mlp_ratio norm_groups max_images similarity signals standardised_tokens token_places",
        "",
    ),
    "EmaConfig": ("decay warmup", ""),
    "EncodeConfig": ("encoder store_tokens batch_size rows_per_group", ""),
    "EncoderConfig": ("weights revision image_px dtype", "compile"),
    "OverviewConfig": ("guidance centred inception perceptual batch_size seed", ""),
    "EvaluationConfig": (
        "protocol num guidance table_guidance training_guidance num_copies num_copies_of num_seeds num_condition_sets "
        "details_guidance num_grid_rows num_grid_samples reference num_reference extractor perceptual centred num_details "
        "neighbours num_train picture_px sampler beyond similarity signals speed use_ema batch_size seed "
        "samples_per_condition baseline_seed",
        "weights allow_network",
    ),
    "FetchConfig": (
        "product max_bytes max_body_bytes max_redirects respect_robots respect_opt_out ports batch_size",
        "contact concurrency per_host_concurrency per_host_per_second connect_timeout_s read_timeout_s total_timeout_s "
        "max_retries backoff_s max_retry_after_s max_host_failures max_crawl_delay_s max_hosts",
    ),
    "GenerateConfig": (
        "guidance beyond sampler similarity signals speed num_conditions samples_per_condition use_ema batch_size seed",
        "",
    ),
    "GuidanceConfig": ("request weights interval parallel max_norm momentum rescale threshold", ""),
    "ImageConfig": (
        "image_px min_side_px max_aspect max_pixels max_bytes blank_levels decode_memory_mb",
        "isolate decode_timeout_s",
    ),
    "IngestConfig": (
        "source read fetch_urls fetch image max_images_per_page drop_near_duplicates near_duplicate_bits near_duplicate_levels "
        "max_furniture_pages max_furniture_page_share census_mb held_out_share split_by min_images seed rows_per_group",
        "",
    ),
    "KeepConfig": ("last best best_is every_steps", ""),  # free as a section
    "MeasureConfig": ("num_points num num_reference guidance sampler extractor seed", "num_shown"),
    "OptimizerConfig": ("learning_rate warmup_steps cooldown_steps beta1 beta2 eps max_grad_norm", ""),
    "ReadConfig": ("pages_per_part images_per_label join_window_mb max_image_bytes", ""),
    "SamplerConfig": ("name num_steps spacing interpolation clip", ""),
    "ScheduleConfig": ("resolution_px noise_resolution_px logsnr_min logsnr_max", ""),
    "Signal": ("name enters dim num dropout weight", ""),
    "SpaceConfig": ("patching learning_rate band conditioning learning_rate_range band_low_range band_high_range", ""),
    "SpeedConfig": ("precision", "compile"),
    "StageConfig": ("channels num_blocks kind dropout", ""),
    "SweepConfig": ("space search num_trials stopping grace_points reduction_factor measure seed", ""),
    "TrainConfig": (
        "denoiser schedule optimizer ema num_steps batch_size num_lanes window_groups prediction loss loss_bias "
        "conditioning_dropout similarity_dropout compute seed",
        "micro_batch_size max_skipped prefetch log_every sample_every num_samples peak_tflops checkpoint_every keep "
        "init_from init_weights",
    ),
}
# What no stage records as its settings: where and how wide it runs, what is planned, what is only read, sections of the above.
NOT_RECORDED = {
    "ClusterConfig", "EncoderRecord", "PipelineConfig", "PlanConfig", "PriceConfig", "Release", "Runtime", "SweepPlan", "Swept",
    "TrackingConfig", "TrainingFacts",
}  # fmt: skip


def config_classes():
    """Every @config class by its name, but those of commands, which hold the settings of stages and places."""
    classes = {}
    for module in pkgutil.walk_packages(semantica.__path__, "semantica."):
        if module.name.startswith("semantica.jobs"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "__pydantic_config__"):
                classes[value.__name__] = value
    return {name: cls for name, cls in classes.items() if not cls.__module__.startswith("semantica.jobs")}  # flags of commands


CLASSES = config_classes()


def test_every_class_of_settings_is_in_the_table_or_is_never_recorded():
    assert CLASSES.keys() == DECIDED.keys() | NOT_RECORDED


@pytest.mark.parametrize("name", sorted(DECIDED))
def test_every_field_is_decided(name):
    fields = dataclasses.fields(CLASSES[name])
    decides = [field.name for field in fields if not field.metadata.get(FREE)]
    free = [field.name for field in fields if field.metadata.get(FREE)]
    assert (sorted(decides), sorted(free)) == tuple(sorted(names.split()) for names in DECIDED[name])
