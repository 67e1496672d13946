"""The dry run of a plan's own schedules takes exactly as long as the recurrence says, and as the closed form does."""

from collections import Counter
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.schedules import constant_case, plan_of, random_case
from hetero_infer.pipeline.rehearsal import rehearse
from hetero_infer.spec import Phase, Workload
from hetero_infer.spec.plan import num_micro_batches


def test_the_dry_run_is_the_recurrence() -> None:
    """Growing costs, slow links, remainders, any two sizes of micro-batches."""
    traits: Counter[str] = Counter()
    for seed in range(200):
        case = random_case(seed)
        assert case.simulated_s() == pytest.approx(case.recurrence_s(), rel=1e-9), case
        traits.update(case.traits)
    assert min(traits["remainders"], traits["η and ξ with other borders"]) > 80
    assert min(traits["one stage"], traits["one sequence"], traits["one token"]) > 15


@pytest.mark.parametrize("one_micro_batch_of", list(Phase))
def test_the_dry_run_is_the_closed_form_where_a_barrier_would_change_nothing(one_micro_batch_of: Phase) -> None:
    """With one prefill micro-batch, or one decode micro-batch, decode begins when all prompts are done anyway."""
    token_bound = station_bound = 0
    for seed in range(200):
        case = constant_case(seed)
        case = replace(case, **{f"{one_micro_batch_of}_size": case.workload.batch_size})
        assert case.simulated_s() == pytest.approx(case.closed_form_s(), rel=1e-12), case
        decode = case.costs.of_phase(Phase.DECODE, num_micro_batches(case.workload.batch_size, case.decode_size))
        token_bound += decode.micro_batches * decode.slowest_s < decode.pass_s
        station_bound += decode.micro_batches * decode.slowest_s > decode.pass_s
    assert token_bound > 30 and (station_bound > 30 or one_micro_batch_of is Phase.DECODE)


def test_the_recurrence_with_a_barrier_is_the_closed_form_on_the_same_cases() -> None:
    for case in map(constant_case, range(200)):
        assert case.recurrence_s(barrier=True) == pytest.approx(case.closed_form_s(), rel=1e-12), case


def test_a_rehearsal_by_hand() -> None:
    """Two stages, two sequences one by one, three tokens; compute 2 and 1 s, 0.5 s for every message."""

    class Costs:
        num_stages = 2

        def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
            return 2.0 - stage

        def send_s(self, stage: int, phase: Phase, batch: int) -> float:
            return 0.5

        def return_s(self, phase: Phase, batch: int) -> float:
            return 0.5

    # The first stage is never idle: P0 0-2, P1 2-4, D0 4-6, D1 6-8, D0 8-10, D1 10-12; then 0.5 + 1 + 0.5 to the end.
    # P0's token is back at 4.0, in time for D0.
    assert rehearse(Costs(), plan_of(2, Workload(2, 8, 3), 1, 1)).makespan_s == 14.0
