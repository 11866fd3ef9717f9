from itertools import product

import pytest
import torch

from fastdit.selectors.pyramid_cut import INF, optimal_cut


def random_errors(leaves, levels, trees, generator):
    sizes = [-(-leaves // 2**level) for level in range(levels)]
    use = [
        torch.rand(trees, size, generator=generator, dtype=torch.float64) * level for level, size in enumerate(sizes)
    ]
    drop = [
        torch.rand(trees, size, generator=generator, dtype=torch.float64) * 2**level for level, size in enumerate(sizes)
    ]
    return use, drop


def cuts_of(level, node, use, drop):
    """Every `(used nodes, error)` for the leaves under a node, by exhaustive search."""
    yield frozenset(), drop[level][node]
    yield frozenset({(level, node)}), use[level][node]
    if level:
        children = [child for child in (2 * node, 2 * node + 1) if child < len(use[level - 1])]
        for parts in product(*(list(cuts_of(level - 1, child, use, drop)) for child in children)):
            yield frozenset().union(*(nodes for nodes, _ in parts)), sum(error for _, error in parts)


def best_by_search(use, drop, budget):
    roots = range(len(use[-1]))
    best = INF
    for parts in product(*(list(cuts_of(len(use) - 1, root, use, drop)) for root in roots)):
        if sum(len(nodes) for nodes, _ in parts) <= budget:
            best = min(best, sum(error for _, error in parts))
    return best


def least_error(cut, use, drop):
    """Error of the best explanation of a given cut, i.e. with its dropped leaves grouped in the cheapest way."""

    def below(level, node):
        children = [child for child in (2 * node, 2 * node + 1) if level and child < len(use[level - 1])]
        return bool(cut[level][node]) or any(below(level - 1, child) for child in children)

    def error(level, node):
        if cut[level][node]:
            return use[level][node]
        children = [child for child in (2 * node, 2 * node + 1) if level and child < len(use[level - 1])]
        split = sum(error(level - 1, child) for child in children) if children else INF
        return split if below(level, node) else min(split, drop[level][node])

    return sum(error(len(use) - 1, root) for root in range(len(use[-1])))


@pytest.mark.parametrize(("leaves", "levels"), [(1, 1), (1, 3), (4, 3), (5, 3), (6, 2), (5, 1), (7, 3)])
def test_the_cut_is_the_best_of_all_cuts(rng, leaves, levels):
    use, drop = random_errors(leaves, levels, 3, rng)
    for budget in range(leaves + 1):
        cut = optimal_cut(use, drop, torch.full((3,), budget), leaves)
        for tree in range(3):
            tree_cut, tree_use, tree_drop = ([level[tree].tolist() for level in part] for part in (cut, use, drop))
            assert sum(map(sum, tree_cut)) <= budget
            found = least_error(tree_cut, tree_use, tree_drop)
            assert found == pytest.approx(best_by_search(tree_use, tree_drop, budget), abs=1e-12)


def test_nodes_of_a_cut_are_disjoint(rng):
    use, drop = random_errors(37, 5, 50, rng)
    budget = torch.randint(0, 38, (50,), generator=rng)
    cut = optimal_cut(use, drop, budget, 37)
    uses = sum(level.repeat_interleave(2**number, 1)[:, :37].int() for number, level in enumerate(cut))
    assert uses.max() == 1
    assert (sum(level.sum(1) for level in cut) <= budget).all()


def test_each_tree_has_its_own_budget(rng):
    use, drop = random_errors(8, 3, 1, rng)
    use, drop = ([level.expand(9, -1) for level in part] for part in (use, drop))
    together = optimal_cut(use, drop, torch.arange(9), 8)
    for budget in range(9):
        alone = optimal_cut([u[:1] for u in use], [d[:1] for d in drop], torch.tensor([budget]), budget)
        assert all(torch.equal(a[0], b[budget]) for a, b in zip(alone, together, strict=True))


def test_forced_leaves_are_used_and_their_ancestors_are_not(rng):
    use, drop = random_errors(11, 4, 20, rng)
    for level in range(4):
        drop[level][:, 6 >> level] = INF
        if level:
            use[level][:, 6 >> level] = INF
    cut = optimal_cut(use, drop, torch.full((20,), 1), 11)
    assert cut[0][:, 6].all()
    assert sum(level.sum() for level in cut) == 20


def test_more_budget_never_gives_more_error(rng):
    use, drop = random_errors(13, 4, 4, rng)
    errors = []
    for budget in range(14):
        cut = optimal_cut(use, drop, torch.full((4,), budget), 13)
        errors.append(least_error(*([level[0].tolist() for level in part] for part in (cut, use, drop))))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
