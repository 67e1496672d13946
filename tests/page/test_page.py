"""The page is one file that needs nothing else, and its charts show the plan that is in it."""

import itertools
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from hetero_infer.cost.timeline import recurrence
from hetero_infer.page.document import draw_page
from hetero_infer.page.lanes import WIDTH
from hetero_infer.planner.answers.pareto import Front, ParetoPoint
from hetero_infer.planner.compare import compare
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import Device, Phase, Plan, Workload
from tests.planner.answers.test_explain import ROOMY, plan_of, request_of

VOID = {"meta"}
HOSTILE = '<script>alert("1")</script>'


class Page(HTMLParser):
    """Elements by tag, with their attributes; a tag that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def rects(self, style: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.elements if tag == "rect" and (attrs.get("class") or "").startswith(style)]

    @property
    def said(self) -> list[str]:
        """What the lanes say to a screen reader."""
        return [attrs["aria-label"] or "" for tag, attrs in self.elements if tag == "svg" and "aria-label" in attrs]


def chart_of(page: str, title: str) -> Page:
    return Page(page.split(f"<h2>{title}</h2>")[1].split("</section>")[0])


@pytest.fixture(scope="module")
def request_() -> PlanRequest:
    return request_of()


@pytest.fixture(scope="module")
def plan(request_: PlanRequest) -> Plan:
    return find_plan(request_, time_limit_s=60, gap=0)


@pytest.fixture(scope="module")
def page(plan: Plan, request_: PlanRequest) -> str:
    compared = compare(request_, plan, {"another": lambda _: plan, HOSTILE: lambda _: NoPlan(HOSTILE)})
    return draw_page(
        plan, request_, facts=[("said", HOSTILE)], front=Front([ParetoPoint(plan)], 9, 2), compared=compared
    )


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    elements = Page(page).elements
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & {tag for tag, _ in elements}
    assert not [attrs for _, attrs in elements if {"src", "href", "xlink:href"} & attrs.keys()]
    assert not re.search(r"url\(|@import|@font-face|https?:", page)


def test_what_files_say_is_text_and_never_markup(request_: PlanRequest) -> None:
    devices = tuple(replace(device, host=f'"><b>{device.host}') for device in request_.cluster.devices)
    hostile = replace(
        request_,
        model_facts={**request_.model_facts, "path": "/models/<img src=x onerror=alert(1)>"},
        cluster=replace(request_.cluster, devices=devices),
    )
    plan = plan_of(hostile)
    plan = replace(plan, estimate=estimate_plan(plan, hostile.model, hostile.cluster, hostile.latency))
    compared = compare(hostile, plan, {HOSTILE: lambda _: NoPlan(HOSTILE)})
    page = draw_page(plan, hostile, facts=[(HOSTILE, HOSTILE)], compared=compared)
    tags = {tag for tag, _ in Page(page).elements}
    assert not {"script", "img", "b"} & tags
    assert HOSTILE in unescape(page) and "<img src=x" in unescape(page)


def test_a_reader_without_eyes_hears_every_chart(page: str, plan: Plan) -> None:
    said = Page(page).said
    for stage in plan.stages:
        assert sum(stage.device in sentence for sentence in said) >= 5
    assert 'lang="en"' in page and all(attrs.get("scope") for tag, attrs in Page(page).elements if tag == "th")


def test_the_map_has_each_layer_once_in_the_colour_of_its_bits(page: str, plan: Plan) -> None:
    cells = chart_of(page, "The bits of every layer").rects("bits-")
    drawn = [cell for cell in cells if "x" in cell]  # those of the legend have none
    assert [cell["class"] for cell in drawn] == [f"bits-{choice.bits}" for choice in plan.layer_choices]
    places = [float(cell["x"] or 0) for cell in drawn]
    assert places == sorted(places) and math.isclose(places[-1] + float(drawn[-1]["width"] or 0), WIDTH, rel_tol=1e-3)


def test_the_bars_are_the_bytes_of_the_plan_to_scale(page: str, plan: Plan) -> None:
    assert plan.estimate
    largest = max(device.memory_bytes for device in plan.devices)
    chart = chart_of(page, "What fills the memory")
    for part in ("weights", "kv-cache", "workspace"):
        widths = [float(bar["width"] or 0) / WIDTH for bar in chart.rects(part) if "x" in bar]
        wanted = [parts[part.replace("-", "_")] / largest for parts in plan.estimate.memory_bytes]
        assert widths == pytest.approx(wanted, rel=1e-3)


def test_the_whole_batch_shows_how_long_each_stage_computes(page: str, plan: Plan, request_: PlanRequest) -> None:
    costs = PlanCosts(plan, request_.model, request_.cluster, request_.latency)
    makespan = recurrence(costs, plan.workload, plan.prefill_micro_batch_size, plan.decode_micro_batch_size)
    for stage, said in enumerate(chart_of(page, "When each device works").said):
        assert f"computes {1 - makespan.idle_share(stage):.0%} of" in said


def test_every_prefill_micro_batch_has_a_box_on_every_stage(plan: Plan, request_: PlanRequest) -> None:
    many = replace(plan, prefill_micro_batch_size=1)
    chart = chart_of(draw_page(many, request_), "The prefill")
    boxes = [box for box in chart.rects("prefill") if "x" in box]
    assert len(boxes) == plan.workload.batch_size * len(plan.stages)
    ends = [float(box["x"] or 0) + float(box["width"] or 0) for box in boxes]
    assert max(ends) <= WIDTH * 1.001


def test_a_plan_by_hand_a_single_stage_and_a_single_token_have_a_page() -> None:
    request = request_of(workload=Workload(2, 16, 1))
    alone = replace(request, cluster=replace(request.cluster, devices=request.cluster.devices[:1]))
    by_hand = plan_of(alone, (request.choices[:1] * 4,))
    page = draw_page(replace(by_hand, solver=None, quality=None, estimate=None), alone)
    assert "The prefill" in page and "The decode" not in page and "How sure this is" not in page


def test_a_device_that_is_left_out_is_shown_as_unused(request_: PlanRequest) -> None:
    spare = Device("spare", 0, "cpu", ROOMY)
    cluster = replace(request_.cluster, devices=(*request_.cluster.devices, spare))
    by_hand = replace(plan_of(request_), devices=cluster.devices)
    page = draw_page(by_hand, replace(request_, cluster=cluster))
    assert "Left out: spare:0 cpu." in page and "spare:0 is not used" in page


def test_the_front_is_drawn_with_the_plan_of_the_page_in_a_ring(plan: Plan, request_: PlanRequest) -> None:
    assert plan.estimate and plan.quality
    points = [
        ParetoPoint(
            replace(
                plan,
                estimate=replace(plan.estimate, tokens_per_s=plan.estimate.tokens_per_s * factor),
                quality=replace(plan.quality, predicted=loss),
            )
        )
        for factor, loss in ((2.0, 30.0), (1.5, 0.2), (0.5, 0.0))
    ]
    chart = chart_of(draw_page(plan, request_, front=Front(points, 3, 0)), "Speed, quality, devices")
    circles = [attrs for tag, attrs in chart.elements if tag == "circle"]
    assert len([circle for circle in circles if circle["class"] == "ring"]) == 1
    assert len([circle for circle in circles if circle["class"] == "series-0"]) == 4
    heights = [float(circle["cy"] or 0) for circle in circles if circle["class"] != "ring"][:3]
    assert all(a < b for a, b in itertools.pairwise(heights))  # the fastest stands highest
    assert all(0 <= float(circle["cx"] or 0) <= 420 for circle in circles)


def test_the_estimate_of_the_file_is_not_trusted(plan: Plan, request_: PlanRequest) -> None:
    assert plan.estimate
    lied = replace(plan, estimate=replace(plan.estimate, tokens_per_s=1e9))
    honest = estimate_plan(plan, request_.model, request_.cluster, request_.latency)
    assert f"<strong>{honest.tokens_per_s:.1f}</strong>" in draw_page(lied, request_)
    assert set(honest.stage_seconds[0]) == {phase.value for phase in Phase}
