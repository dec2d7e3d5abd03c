"""Blocks dealt into folds: whole, each once, and never all that a class has."""

from collections.abc import Sequence

import numpy as np
from geopeft.data.chips import Site
from geopeft.data.folds import deal_blocks


def sites_of(classes: Sequence[int], groups: Sequence[int] | None = None) -> list[Site]:
    chosen = groups if groups is not None else range(len(classes))
    return [Site(0, group, index, np.zeros((1, 2)), 9) for index, group in zip(classes, chosen, strict=True)]


def test_every_place_is_held_out_once_and_every_fold_has_as_much_of_each_class() -> None:
    classes = [0] * 12 + [1] * 12
    blocks = [n // 2 for n in range(24)]
    held = [block % 4 == 0 for block in blocks]
    folds = deal_blocks(sites_of(classes), blocks, held, 3, 0)
    assert sorted(at for fold in folds for at in fold) == [at for at, out in enumerate(held) if not out]
    for fold in folds:
        assert len({blocks[at] for at in fold}) * 2 == len(fold), "whole blocks"
        assert abs(sum(classes[at] for at in fold) - len(fold) / 2) <= 2
    assert deal_blocks(sites_of(classes), blocks, held, 3, 0) == folds


def test_a_shape_in_several_blocks_keeps_them_together() -> None:
    sites, blocks = sites_of([0, 1, 0, 1, 0, 1], groups=[0, 0, 1, 2, 3, 4]), [0, 1, 2, 2, 3, 4]
    folds = deal_blocks(sites, blocks, [False] * 6, 3, 0)
    assert all((0 in fold) == (1 in fold) for fold in folds)


def test_the_only_block_of_a_class_always_teaches() -> None:
    folds = deal_blocks(sites_of([0, 0, 1, 0, 2, 1]), [0, 1, 1, 2, 2, 3], [False] * 6, 2, 0)
    # Class 2 lies in block 2 only, with a place of class 0 that teaches with it.
    assert sorted(at for fold in folds for at in fold) == [0, 1, 2, 5]
    classes = [0, 0, 1, 0, 2, 1]
    for fold in folds:
        assert {classes[at] for at in range(6) if at not in fold} == {0, 1, 2}


def test_two_blocks_of_a_class_are_never_held_out_together() -> None:
    for seed in range(5):
        folds = deal_blocks(sites_of([0, 0, 1, 1]), [0, 1, 0, 1], [False] * 4, 1, seed)
        assert [sorted(fold) for fold in folds] in ([[0, 2]], [[1, 3]])


def test_where_nothing_can_be_held_out_there_are_no_folds() -> None:
    assert deal_blocks(sites_of([0, 1]), [0, 1], [False, False], 3, 0) == []
