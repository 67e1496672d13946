"""`links.csv`: what was measured comes back, and what is no link is named with its row."""

from pathlib import Path

import pytest

from hetero_infer.spec import Cluster, Device, InputError, Link, LinkTable

TABLE = LinkTable({("a", "b"): Link(1e-4, 1.25e9), ("b", "b"): Link(0, 2e10)}, {"a to b.holdout_mean": "0.031"})
HEAD = "# format = 1\nfrom,to,alpha_s,bytes_per_s\n"


def test_a_table_is_the_same_after_a_file(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    TABLE.save(path)
    assert path.read_text().splitlines()[:2] == ["# format = 1", "# a to b.holdout_mean = 0.031"]
    assert LinkTable.load(path) == TABLE
    assert LinkTable.load_if_there(tmp_path / "nothing.csv") == LinkTable({})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("from,to,alpha_s,bytes_per_s\na,b,1e-4,1e9\n", "its first line must read '# format = 1'"),
        (HEAD + "a,b,1e-4,0\n", "row 1: link: alpha_s = 0.0001 and bytes_per_s = 0.0 make no link"),
        (HEAD + "a,b,1e-4,1e9\na,c,nan,1e9\n", "row 2: alpha_s = nan is not a finite number"),
        (HEAD + "a,b,1e-4,inf\n", "row 1: bytes_per_s = inf is not a finite number"),
        (HEAD + "a,b,soon,1e9\n", "row 1: alpha_s = 'soon' is not a number"),
        (HEAD + "a,b,1e-4\n", "row 1: 3 values for 4 columns"),
        (HEAD + ",b,1e-4,1e9\n", "row 1: a row reads from,to,alpha_s,bytes_per_s"),
        (HEAD + "a,b,1e-4,1e9\nb,a,1e-4,1e9\na,b,2e-4,1e9\n", "a to b stands there twice"),
        ("# format = 1\nhosts,alpha_s\na,1\n", "the column hosts is not known"),
    ],
)
def test_what_is_no_table_is_said_with_its_row(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text(text)
    with pytest.raises(InputError) as error:
        LinkTable.load(tmp_path / "links.csv")
    assert str(error.value).startswith(f"links {tmp_path}/links.csv") and named in str(error.value)


def test_measured_links_replace_their_own_and_leave_the_others() -> None:
    again = LinkTable({("a", "b"): Link(1, 1)}, {"a to b.holdout_mean": "0.5"})
    both = LinkTable(TABLE.links, {**TABLE.header, "b to b.holdout_mean": "0.1"}).with_measured(again)
    assert both.links == {("a", "b"): Link(1, 1), ("b", "b"): Link(0, 2e10)}
    assert both.header == {"a to b.holdout_mean": "0.5", "b to b.holdout_mean": "0.1"}


def test_a_cluster_knows_which_of_its_links_nobody_measured() -> None:
    devices = (Device("a", 0, "t4", 1), Device("b", 0, "t4", 1), Device("b", 1, "t4", 1))
    cluster = Cluster(devices, Link(1, 1), TABLE.links)
    assert cluster.host_pairs == (("a", "b"), ("b", "a"), ("b", "b"))
    assert cluster.unmeasured_pairs == (("b", "a"),)
    assert cluster.link(devices[1], devices[2]) == Link(0, 2e10)
