"""RAFTConfig: what TRL's users already write, and what it means here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from transformers import TrainingArguments

from . import handover
from .errors import UserError
from .pick.trackers import TRACKERS

# Of GRPOConfig and RLOOConfig (TRL 1.16): about a gradient that is not taken here. Accepted, so that a script runs on.
_FLAGS_OF_OTHERS = """
trust_remote_code disable_dropout cast_lm_head_to_fp32 ds3_gather_for_generation shuffle_dataset vllm_enable_sleep_mode
mask_truncated_completions sync_ref_model use_adaptive_entropy vllm_importance_sampling_correction
use_bias_correction_kl log_multimodal log_unique_prompts use_transformers_continuous_batching use_transformers_paged
normalize_advantages
"""
_VALUES_OF_OTHERS = """
model_init_kwargs router_aux_loss_coef pad_to_multiple_of generation_batch_size steps_per_generation min_p
generation_kwargs chat_template_kwargs repetition_penalty cache_implementation vllm_model_impl
vllm_structured_outputs_regex vllm_server_timeout vllm_group_port num_iterations epsilon delta epsilon_high
sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
importance_sampling_level multi_objective_aggregation scale_rewards loss_type ref_model_mixup_alpha
ref_model_sync_steps top_entropy_quantile entropy_coef entropy_coef_min entropy_coef_max entropy_coef_delta
entropy_target max_tool_calling_iterations vllm_importance_sampling_mode vllm_importance_sampling_clip_max
vllm_importance_sampling_clip_min off_policy_mask_threshold num_completions_to_print log_completions_hub_repo
transformers_continuous_batching_config vllm_importance_sampling_cap reward_clip_range
"""
OF_OTHERS = (*_FLAGS_OF_OTHERS.split(), *_VALUES_OF_OTHERS.split())
# Of TrainingArguments: those that recipe() and the trainer read, and those that only tell what happens anyway
_MEANT = """
output_dir learning_rate per_device_train_batch_size gradient_accumulation_steps max_steps num_train_epochs seed
lr_scheduler_type max_grad_norm weight_decay gradient_checkpointing gradient_checkpointing_kwargs optim
push_to_hub hub_model_id hub_token hub_private_repo report_to run_name project trackio_space_id logging_steps
logging_strategy logging_first_step logging_dir disable_tqdm save_strategy save_steps eval_strategy eval_steps
per_device_eval_batch_size remove_unused_columns bf16 use_cpu load_best_model_at_end save_total_limit log_level
data_seed do_train do_eval dataloader_pin_memory activation_checkpointing activation_checkpointing_kwargs
"""
MEANT = frozenset(_MEANT.split())
ADAMW = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit")
_BARE = {"nargs": "?", "const": True}  # how a parser of arguments takes a flag: --name, or --name false
_Others = make_dataclass(
    "_Others",
    [
        *((name, bool | None, field(default=None, metadata=_BARE)) for name in _FLAGS_OF_OTHERS.split()),
        *((name, str | None, field(default=None)) for name in _VALUES_OF_OTHERS.split()),
    ],
)


@dataclass
class RAFTConfig(TrainingArguments, _Others):  # pyright: ignore[reportGeneralTypeIssues]
    """Arguments of :class:`raftune.RAFTTrainer`: those of ``transformers.TrainingArguments`` and of TRL's GRPOConfig
    that mean something here. What is set and means nothing is said once, as a warning; nothing is silently different.

    ``num_generations``: K. ``per_device_train_batch_size`` × ``gradient_accumulation_steps``: outputs of an optimiser
    step. ``prompts_per_round``: by default 64, or as many as a GRPO step of these sizes would take where that is more,
    and at most all. The length is counted in prompts, as TRL's: ``max_steps`` steps of batch size / ``num_generations``
    prompts, or ``num_train_epochs`` passes; so many rounds are made of them. ``rounds`` says it directly.
    ``num_tune_epochs``: passes over the chosen in a round. ``rule``, ``floor``: of selection. ``beta``: candidates are
    ranked by r - β·log(p/p0). ``heldout``: without an ``eval_dataset``, how many prompts (or which share) are kept out
    of training to tell the best round; by default a tenth, 64 at most. ``num_generations_eval``: answers to each of
    them, 1 by default. ``report_to``: trackers that are told of every round (docs/tracking.md), as ``run_name`` under
    ``project``.
    """

    learning_rate: float = field(default=2e-5)
    num_generations: int = 8
    num_generations_eval: int | None = None
    max_completion_length: int | None = 512
    max_prompt_length: int | None = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = 0
    beta: float = 0.0
    reward_weights: list[float] | None = None
    stop_strings: list[str] | None = None
    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_server_base_url: str | None = None
    vllm_server_host: str = "0.0.0.0"
    vllm_server_port: int = 8000
    vllm_gpu_memory_utilization: float = 0.9
    vllm_tensor_parallel_size: int = 1
    vllm_max_model_length: int | None = None
    log_completions: bool = False
    remove_unused_columns: bool = False
    prompts_per_round: int | None = None
    rounds: int | None = None
    num_tune_epochs: int = 1
    rule: str = "best"
    floor: float | None = None
    skip_tied: bool = False
    patience: int | None = None
    heldout: float | None = None

    @property
    def batch_size(self) -> int:
        """Outputs of an optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def prompts_of_a_step(self) -> int:
        """As TRL counts them. A K of 0 is refused by the recipe, in words."""
        return self.batch_size // max(1, self.num_generations)

    def prompts_of_a_round(self, prompts: int) -> int:
        """Of so many that train."""
        asked = self.prompts_per_round or max(64, self.prompts_of_a_step)
        return max(1, min(asked, prompts))

    def prompts_over(self) -> int:
        """How many prompts a run goes through that takes them from a stream. UserError where nothing bounds it."""
        if self.rounds is not None:
            return self.rounds * (self.prompts_per_round or max(64, self.prompts_of_a_step))
        if self.max_steps <= 0:
            raise UserError("max_steps: is needed where train_dataset is a stream, or rounds")
        return self.max_steps * max(1, self.prompts_of_a_step)

    def rounds_over(self, prompts: int) -> int:
        """How many rounds go through as many prompts as TRL would."""
        if self.rounds is not None:
            return self.rounds
        passed = self.num_train_epochs * prompts
        if self.max_steps > 0:
            passed = self.max_steps * max(1, self.prompts_of_a_step)
        return max(1, math.ceil(passed / self.prompts_of_a_round(prompts)))

    def recipe(self, prompts: int) -> dict[str, Any]:
        """As a recipe says it, without model, prompts and reward. UserError where an argument cannot be honoured."""
        given = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        schedule = handover.schedule(given, "lr_scheduler_type")
        optimizer = str(getattr(self.optim, "value", self.optim))
        if optimizer not in ADAMW:
            raise UserError(f"optim: {optimizer} is not there; use one of {', '.join(ADAMW)}")
        if self.max_completion_length is None:
            raise UserError("max_completion_length: None has no end; give a number of tokens")
        sample: dict[str, Any] = {
            "prompts_per_round": self.prompts_of_a_round(prompts),
            "k": self.num_generations,
            "temperature": self.temperature,
            "top_p": None if self.top_p >= 1 else self.top_p,
            "top_k": self.top_k if self.top_k and self.top_k > 0 else None,
            "max_new_tokens": self.max_completion_length,
            "stop": self.stop_strings or [],
        }
        if self.use_vllm:
            sample |= {"backend": "vllm", **self._vllm()}
        tune = {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "epochs": self.num_tune_epochs,
            "schedule": schedule,
            "max_grad_norm": self.max_grad_norm,
            "weight_decay": self.weight_decay,
            "gradient_checkpointing": bool(self.gradient_checkpointing),
            "optimizer_bits": 8 if "8bit" in optimizer else 32,
        }
        return {
            "sample": sample,
            "tune": tune,
            "select": {"rule": self.rule, "floor": self.floor, "skip_tied": self.skip_tied},
            "kl_coefficient": self.beta,
            "evaluate": {"patience": self.patience, "k": self.num_generations_eval or 1},
            "rounds": self.rounds_over(prompts),
            "seed": self.seed,
            "out": str(self.output_dir),
            "track": [self._track(name) for name in self.reports if name not in self._elsewhere],
        }

    def _vllm(self) -> dict[str, Any]:
        """The server, where one is named, else how the engine starts here."""
        if self.vllm_server_base_url or self.vllm_mode == "server":
            return {"url": self.vllm_server_base_url or f"http://{self.vllm_server_host}:{self.vllm_server_port}"}
        engine = {
            "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "tensor_parallel_size": self.vllm_tensor_parallel_size,
            "max_model_len": self.vllm_max_model_length,
        }
        return {"vllm": engine}

    @property
    def reports(self) -> list[str]:
        """The names in ``report_to``, of which TrainingArguments has made a list; of "all" one of what is installed."""
        given: Any = self.report_to
        return [given] if isinstance(given, str) else list(given or [])

    @property
    def _elsewhere(self) -> list[str]:
        """What transformers reports to and we do not: "all" names it where it is installed."""
        from transformers.integrations.integration_utils import get_available_reporting_integrations

        return sorted(set(self.reports) & set(get_available_reporting_integrations()) - set(TRACKERS))

    def _track(self, name: str) -> dict[str, Any]:
        """As a recipe says it: ``run_name`` and ``project``, where it was set, if that tracker has such things."""
        if name == "tensorboard" or ":" in name:
            return {"use": name}
        project = None if self.project == TrainingArguments.project else self.project
        space = {"space_id": self.trackio_space_id} if name == "trackio" and self.trackio_space_id else {}
        return {"use": name, "project": project, "name": self.run_name, "options": space}

    def unused(self) -> list[str]:
        """What was set and means nothing here."""
        plain = TrainingArguments(output_dir=self.output_dir)
        own = {one.name for one in fields(TrainingArguments)} - MEANT
        changed = [name for name in sorted(own) if getattr(self, name, None) != getattr(plain, name, None)]
        elsewhere = [f"report_to={name}" for name in self._elsewhere]
        return [*(name for name in OF_OTHERS if getattr(self, name) is not None), *changed, *elsewhere]
