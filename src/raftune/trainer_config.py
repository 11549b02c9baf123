"""RAFTConfig: what TRL's users already write, and what it means here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from transformers import TrainingArguments

from .errors import UserError
from .pick.trackers import TRACKERS

# Of GRPOConfig and RLOOConfig (TRL 1.16): about a gradient that is not taken here. Accepted, so that a script runs on.
_OF_OTHERS = """
trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32 num_generations_eval
ds3_gather_for_generation shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation min_p
generation_kwargs chat_template_kwargs repetition_penalty cache_implementation vllm_mode vllm_model_impl
vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_host vllm_server_port vllm_server_timeout
vllm_group_port vllm_max_model_length num_iterations epsilon delta epsilon_high sapo_temperature_neg
sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level
multi_objective_aggregation scale_rewards loss_type mask_truncated_completions sync_ref_model
ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy
entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target max_tool_calling_iterations
vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
vllm_importance_sampling_clip_min off_policy_mask_threshold use_bias_correction_kl log_multimodal
num_completions_to_print log_unique_prompts log_completions_hub_repo use_transformers_continuous_batching
transformers_continuous_batching_config use_transformers_paged vllm_importance_sampling_cap normalize_advantages
reward_clip_range
"""
OF_OTHERS = tuple(_OF_OTHERS.split())
# Of TrainingArguments: those that recipe() and the trainer read, and those that only tell what happens anyway
_MEANT = """
output_dir learning_rate per_device_train_batch_size gradient_accumulation_steps max_steps num_train_epochs seed
lr_scheduler_type max_grad_norm weight_decay gradient_checkpointing gradient_checkpointing_kwargs optim
push_to_hub hub_model_id hub_token hub_private_repo report_to run_name project trackio_space_id logging_steps
logging_strategy logging_first_step logging_dir disable_tqdm save_strategy save_steps eval_strategy eval_steps
per_device_eval_batch_size remove_unused_columns bf16 use_cpu load_best_model_at_end save_total_limit log_level
data_seed do_train do_eval dataloader_pin_memory
"""
MEANT = frozenset(_MEANT.split())
_Others = make_dataclass("_Others", [(name, Any, field(default=None)) for name in OF_OTHERS])
SCHEDULES = ("linear", "constant")


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
    of training to tell the best round; by default a tenth, 64 at most. ``report_to``: trackers that are told of every
    round (docs/tracking.md), as ``run_name`` under ``project``.
    """

    learning_rate: float = field(default=2e-5)
    num_generations: int = 8
    max_completion_length: int = 256
    max_prompt_length: int | None = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = 0
    beta: float = 0.0
    reward_weights: list[float] | None = None
    stop_strings: list[str] | None = None
    use_vllm: bool = False
    vllm_server_base_url: str | None = None
    vllm_gpu_memory_utilization: float = 0.9
    vllm_tensor_parallel_size: int = 1
    log_completions: bool = False
    model_init_kwargs: dict[str, Any] | None = None
    remove_unused_columns: bool = False
    prompts_per_round: int | None = None
    rounds: int | None = None
    num_tune_epochs: int = 1
    rule: str = "best"
    floor: float | None = None
    skip_tied: bool = False
    patience: int | None = None
    heldout: float | int | None = None

    @property
    def batch_size(self) -> int:
        """Outputs of an optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def prompts_of_a_round(self, prompts: int) -> int:
        """Of so many that train."""
        asked = self.prompts_per_round or max(64, self.batch_size // self.num_generations)
        return max(1, min(asked, prompts))

    def rounds_over(self, prompts: int) -> int:
        """How many rounds go through as many prompts as TRL would."""
        if self.rounds is not None:
            return self.rounds
        passed = self.num_train_epochs * prompts
        if self.max_steps > 0:
            passed = self.max_steps * max(1, self.batch_size // self.num_generations)
        return max(1, math.ceil(passed / self.prompts_of_a_round(prompts)))

    def recipe(self, prompts: int) -> dict[str, Any]:
        """As a recipe says it, without model, prompts and reward. UserError where an argument cannot be honoured."""
        schedule = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        if schedule not in SCHEDULES:
            raise UserError(f"lr_scheduler_type: {schedule} within a round is not there; use {' or '.join(SCHEDULES)}")
        sample: dict[str, Any] = {
            "prompts_per_round": self.prompts_of_a_round(prompts),
            "k": self.num_generations,
            "temperature": self.temperature,
            "top_p": None if self.top_p >= 1 else self.top_p,
            "top_k": self.top_k or None,
            "max_new_tokens": self.max_completion_length,
            "stop": self.stop_strings or [],
        }
        if self.use_vllm:
            engine = {
                "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
                "tensor_parallel_size": self.vllm_tensor_parallel_size,
            }
            sample |= {"backend": "vllm"}
            sample |= {"url": self.vllm_server_base_url} if self.vllm_server_base_url else {"vllm": engine}
        tune = {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "epochs": self.num_tune_epochs,
            "schedule": schedule,
            "max_grad_norm": self.max_grad_norm,
            "weight_decay": self.weight_decay,
            "gradient_checkpointing": bool(self.gradient_checkpointing),
            "optimizer_bits": 8 if "8bit" in str(self.optim) else 32,
        }
        return {
            "sample": sample,
            "tune": tune,
            "select": {"rule": self.rule, "floor": self.floor, "skip_tied": self.skip_tied},
            "kl_coefficient": self.beta,
            "evaluate": {"patience": self.patience},
            "rounds": self.rounds_over(prompts),
            "seed": self.seed,
            "out": str(self.output_dir),
            "track": [self._track(name) for name in self.reports if name not in self._elsewhere],
        }

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
