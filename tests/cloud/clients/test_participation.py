"""Who takes part is drawn by keys: repeatable, and one device more changes nothing for the rest."""

from collections import Counter

from cloud.clients.participation import STAGES, Participation


def test_samples_repeat_and_reach_everybody_alike():
    part = Participation(10, 3, 0.0, seed=1)
    rounds = [part.chosen(r) for r in range(600)]
    assert rounds == [part.chosen(r) for r in range(600)]
    assert all(len(set(chosen)) == 3 and chosen == sorted(chosen) for chosen in rounds)
    counts = Counter(d for chosen in rounds for d in chosen)
    assert set(counts) == set(range(10))
    assert all(abs(n - 180) < 60 for n in counts.values())  # 5 standard deviations of 11.2


def test_all_take_part_unless_fewer_are_asked_for():
    assert Participation(3, 0, 0.0, seed=0).chosen(5) == [0, 1, 2]
    assert Participation(3, 9, 0.0, seed=0).chosen(5) == [0, 1, 2]


def test_dropouts_have_their_share_and_every_moment():
    part = Participation(50, 0, 0.3, seed=2)
    drops = [drop for r in range(40) for drop in part.dropouts(r).values()]
    assert abs(len(drops) / 2000 - 0.3) < 0.05  # 5 standard deviations of 0.0102
    stages = Counter(drop.stage for drop in drops)
    assert set(stages) == set(STAGES)
    assert min(stages.values()) > 100
    assert all(0.0 <= drop.share < 1.0 for drop in drops)


def test_a_device_more_changes_nothing_for_the_others():
    few, more = Participation(5, 0, 0.5, seed=3), Participation(6, 0, 0.5, seed=3)
    for r in range(20):
        assert few.dropouts(r) == {d: x for d, x in more.dropouts(r).items() if d < 5}


def test_nobody_drops_out_of_a_reliable_federation():
    part = Participation(5, 0, 0.0, seed=3)
    assert not any(part.dropouts(r) for r in range(10))
