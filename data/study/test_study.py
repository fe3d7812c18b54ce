"""The numbers of both pages are those of the runs: python -m pytest -q data/study/test_study.py"""

import json
import math
from pathlib import Path

import pytest
import torch

from data.study import make_pretrained, report
from data.study import study as the_study

FOLDER = Path(the_study.__file__).parent


@pytest.fixture(scope="module")
def study():
    return json.loads((FOLDER / "study.json").read_text())


@pytest.fixture(scope="module")
def texts(study):
    return report.texts_of(study)


# -------------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", report.PAGES, ids=["study", "project"])
def test_pages_say_what_the_runs_say(page, texts):
    marked = report.marked(page.read_text())
    assert marked
    for name, text in marked.items():
        assert text == texts[name], f"{name}: python -m data.study.study report"


def test_every_text_is_on_a_page(texts):
    marked = [name for page in report.PAGES for name in report.marked(page.read_text())]
    assert sorted(marked) == sorted(texts)


def test_a_flipped_headline_is_noticed(study, texts):
    """RIFT's and RFT's results exchanged: the sentences and tables on the pages change."""
    other = {"rift": "rft-steps", "rft-steps": "rift"}
    runs = [{**run, "method": other.get(run["method"], run["method"])} for run in study["bases"]]
    flipped = {**study, "bases": runs}
    for name in ("findings", "main", "differences", "kinds", "single-runs", "study"):
        assert report.SECTIONS[name](flipped) != texts[name]
    lead = report.led(study, "rift", "rft-steps", "pass@8")
    assert report.led(flipped, "rift", "rft-steps", "pass@8") == lead.replace("+", "-")


def test_headline_from_the_runs_alone(study):
    """The lead in pass@8 and its interval, computed here without the report's functions."""
    by_base = {}
    for run in study["bases"]:
        usual = (run["temperature"], run["lr"], run["wrong"], run["on"]) == (1, 3e-4, -0.2, "test")
        if usual and run["method"] in ("rift", "rft-steps"):
            sign = 1 if run["method"] == "rift" else -1
            value = 100 * sign * run["results"]["all"]["pass@8"][0]
            by_base.setdefault(run["base"], []).append(value)
    leads = [2 * sum(values) / len(values) for values in by_base.values()]
    mean = sum(leads) / 10
    variance = sum((lead - mean) ** 2 for lead in leads) / 9
    half = 2.2622 * math.sqrt(variance / 10)
    assert report.led(study, "rift", "rft-steps", "pass@8") == f"{mean:+.1f} ± {half:.1f}"
    assert len(leads) == 10 and min(leads) > 0


# ---------------------------------------------------------------------------------- the statistics


def test_interval():
    mean, half = report.interval([1, 2, 3, 4])
    assert mean == 2.5
    assert half == pytest.approx(3.1824 * 1.29099 / 2, rel=1e-4)  # t(0.975, 3) s / sqrt(4)


def test_sign_test():
    assert report.sign_test([1] * 10) == (10, 0, pytest.approx(2 / 1024))
    assert report.sign_test([1] * 9 + [-1]) == (9, 1, pytest.approx(22 / 1024))
    assert report.sign_test([1, 2, 0, -1])[:2] == (2, 1)  # 0 counts for neither


def test_wilcoxon_interval():
    """For ten values it is from the 9th smallest to the 9th largest mean of two of them."""
    values = [0.3, 1.1, 2.2, 2.9, 4.4, 5.2, 6.1, 7.7, 8.5, 21.0]
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    median, low, high = report.wilcoxon_interval(values)
    assert (median, low, high) == pytest.approx((means[27], means[8], means[-9]))


def test_differences_are_paired():
    def run(base, seed, method, value):
        results = {"all": {"greedy": [value / 100, 0]}}
        return {"base": base, "seed": seed, **report.settings(method), "results": results}

    runs = [run(0, 0, "rift", 5), run(0, 0, "rft-steps", 3), run(0, 1, "rift", 90)]
    runs += [run(1, 0, "rift", 7), run(1, 0, "rft-steps", 8)]
    pair = report.settings("rift"), report.settings("rft-steps")
    assert report.lead(runs, *pair, "greedy") == pytest.approx([2, -1])  # seed 1 has no partner


def test_leads_of_the_pretrained_model_by_seed_and_by_problem():
    """Seed 2 has no partner and does not count."""

    def run(seed, method, right):
        return {"seed": seed, "method": method, "right of 8": right}

    runs = [run(0, "rift", [8, 0, 4]), run(0, "rft-steps", [0, 0, 4]), run(2, "rift", [8, 8, 8])]
    runs += [run(1, "rift", [0, 2, 0]), run(1, "rft-steps", [4, 0, 0])]
    pair = {"method": "rift"}, {"method": "rft-steps"}
    by_seed, by_problem = report.pretrained_lead(runs, *pair, "mean@8")
    assert by_seed == pytest.approx([100 / 3, -25 / 3])
    assert by_problem == pytest.approx([25, 12.5, 0])
    by_seed, by_problem = report.pretrained_lead(runs, *pair, "pass@8")
    assert by_seed == pytest.approx([100 / 3, 0])
    assert by_problem == pytest.approx([0, 50, 0])


# ------------------------------------------------------------------------------- the runs


def test_every_listed_run_is_there(study):
    for name, runs_of in the_study.EXPERIMENTS.items():
        listed = {the_study.key(run) for run in runs_of(study)}
        found = [the_study.key(run) for run in study[name]]
        assert len(found) == len(set(found))
        assert set(found) == listed, name


def test_the_base_model_that_ships(study):
    """The lower of the two in the middle of RIFT's lead on validation problems is number 5."""
    values = []
    for base in range(10):
        runs = [run for run in study["bases"] if run["base"] == base]
        mine, other = (report.settings(method, on="valid") for method in ("rift", "rft-steps"))
        values.append((report.lead(runs, mine, other, "mean@8")[0], base))
    assert sorted(values)[4][1] == 5


def test_topr_loss():
    """RIFT with pi / mu. Its gradient at log pi is -r where pi is above mu, else -r pi / mu."""
    logps = torch.tensor([[-1.0], [-3.0], [-2.0], [-2.0]], requires_grad=True)
    rewards = torch.tensor([1.0, -2.0, -2.0, -3.0])  # of wrong samples: log mu
    losses = the_study.topr_loss(-0.2)(logps, torch.ones(4, 1), rewards)
    expected = [1, 0.2 * math.exp(-1), 0.2, 0.4]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert logps.grad.flatten().tolist() == pytest.approx([-1, *expected[1:3], 0.2])


@pytest.mark.parametrize("method", ["rft-passes", "rft-distinct", "topr"])
def test_a_run_repeated_has_the_stored_figures(study, tmp_path_factory, method):
    """Base model 5 is the one in data/. Other machines round differently, hence the tolerance."""
    run = the_study.make_run(5, 0, method)
    (stored,) = (r for r in study["bases"] if the_study.key(r) == the_study.key(run))
    folder = tmp_path_factory.getbasetemp()  # the samples are drawn once
    if not (folder / "world-5").exists():
        (folder / "world-5").symlink_to(Path("data").absolute())
    done = the_study.carry_out(run, folder, folder)
    for name in ("right", "steps made", "batch"):
        assert done[name] == stored[name]
    assert done["logp_pos"] == pytest.approx(stored["logp_pos"], rel=0.05)
    for measure in report.MEASURES:
        mean = stored["results"]["all"][measure][0]
        assert done["results"]["all"][measure][0] == pytest.approx(mean, abs=0.02)


def test_equations_of_word_problems():
    assert make_pretrained.infix("- 9 * 2 3".split()) == "9 - (2 * 3)"
