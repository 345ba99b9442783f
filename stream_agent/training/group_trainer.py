"""TRL's GRPO trainer, given our prompts and rewards, with two departures.

- A group of equal rewards has no advantage; TRL still pulls it to the reference by its KL. Here it is skipped altogether.
- Where the answer is a single code, every answer of a group follows from the same logits. They are computed once per prompt
  instead of once per answer, for sampling, for the reference and for the step: the same arithmetic, an eighth of it.

Both hang on private methods of TRL 1.16, which is pinned; the tests compare with TRL's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import trl

from stream_agent.planner.backends.causal import CausalModel
from stream_agent.training.grpo import GroupTraining
from stream_agent.training.rewards import Situation, reward
from stream_agent.training.tuning import saved, settings


def group_trainer(
    config: GroupTraining,
    model: Any,
    base: CausalModel,
    prompts: Sequence[tuple[int, ...]],
    situations: Sequence[Situation],
    checkpoints: Path,
    *,
    one_token: bool,
) -> GroupTrainer:
    """The trainer, ready to go; `one_token` if all answers are codes."""
    group = config.group
    arguments = trl.GRPOConfig(
        **settings(config, checkpoints, on_cpu=base.device.type == "cpu", rows=group.size),
        **saved(config),
        num_generations=group.size,
        max_completion_length=1 if one_token else group.plan_tokens,
        temperature=group.temperature,
        beta=group.kl,
        epsilon=group.clip,
        loss_type="grpo",
        scale_rewards="group",
    )

    def total(completions: Sequence[str], number: Sequence[int], log_metric: Any, **_: object) -> list[float]:
        judged = [reward(text, situations[n], config.rewards) for text, n in zip(completions, number, strict=True)]
        for name in ("format", "rank", "relaxed", "rules", "length"):
            log_metric(f"rewards/{name}", sum(getattr(one, name) for one in judged) / len(judged))
        return [one.total for one in judged]

    rows = [{"prompt": str(number), "number": number} for number in range(len(prompts))]
    return GroupTrainer(
        prompts=prompts,
        model=model,
        reward_funcs=total,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=base.tokenizer,
    )


class GroupTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """Asks with encoded prompts, which its rows name by number.

    Attributes:
        seen: Groups so far, of this process.
        skipped: Those of them whose rewards were all equal.
    """

    def __init__(self, *, prompts: Sequence[tuple[int, ...]], **given: Any) -> None:
        self._prompts = prompts
        self.seen = 0
        self.skipped = 0
        super().__init__(**given)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, object]]:
        return [list(self._prompts[int(number)]) for number in prompts], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: object,
        multimodal_fields: dict[str, object],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        if self.max_completion_length != 1 or self.use_vllm:
            found: tuple[list[list[int]], Any] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
            return found
        different = list(dict.fromkeys(map(tuple, prompt_ids)))
        width = max(map(len, different))
        padding = self.processing_class.pad_token_id
        ids = torch.tensor(
            [[*[padding] * (width - len(row)), *row] for row in different], device=self.accelerator.device
        )
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in different], device=ids.device)
        with torch.no_grad():
            beliefs = self._next_token(self.model, ids, mask).exp()
        row_of = {row: place for place, row in enumerate(different)}
        chosen = beliefs[[row_of[tuple(row)] for row in prompt_ids]].multinomial(1)
        return [[int(token)] for token in chosen[:, 0]], None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **pictures: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Of each answer's tokens, (B, T); of one token from one pass per different prompt."""
        if logits_to_keep != 1 or compute_aux_loss or any(value is not None for value in pictures.values()):
            found: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
            found = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **pictures,
            )
            return found
        rows = torch.cat([input_ids[:, :-1], attention_mask[:, :-1]], dim=1)
        asked, place = torch.unique(rows, dim=0, return_inverse=True)
        first = torch.stack([(place == row).nonzero()[0, 0] for row in range(len(asked))])
        beliefs = self._next_token(model, input_ids[first, :-1], attention_mask[first, :-1])[place]
        entropy = -(beliefs.exp() * beliefs).sum(-1, keepdim=True) if compute_entropy else None
        return beliefs.gather(1, input_ids[:, -1:]), entropy, None

    def _next_token(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of what follows prompts padded on the left, (B, V)."""
        with self.accelerator.autocast():
            out = model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
        return torch.log_softmax(out.logits[:, -1].float() / self.temperature, dim=-1)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        groups = scored["advantages"].view(-1, self.num_generations)
        moves = (groups != 0).any(1)
        self.seen += len(moves)
        self.skipped += int((~moves).sum())
        keep = moves.repeat_interleave(self.num_generations)[:, None]
        scored["completion_mask"] = scored["completion_mask"] * keep.to(scored["completion_mask"].dtype)
        return scored
