"""The result of a run as Python shows it: the tree as text and as a picture, and a notebook's view of both with the scores."""

from html import escape

from matplotlib.figure import Figure

from distbranch.config.network import BASELINES
from distbranch.engine.results import RunResult
from distbranch.errors import UserError
from distbranch.report.console import tabulate_scores
from distbranch.report.layers import list_layers
from distbranch.report.page import VARIABLES, draw_svg
from distbranch.report.tree_figure import draw_tree


class ShownResult(RunResult):
    """A result that draws itself."""

    def plot(self) -> Figure:
        """The tree from the image to the task names, as in the report; `result.plot().savefig("tree.png")` keeps it.

        Raises:
            UserError: the tasks of this method share by no tree.
        """
        method, tree = self.summary["method"], self.tree
        if method in BASELINES:
            raise UserError(
                f"The tasks of method.name={method} share by no tree, so there is none to draw. Give a run of another method."
            )
        return draw_tree(list_layers(tree.describe_layers(tree.task_names)))

    def _repr_html_(self) -> str:
        """For notebooks: the name, the scores of every split, and the tree."""
        means = {split: scores["mean"] for split, scores in self.metrics.items()}
        parts = [f"<b>{escape(self.summary['name'])}</b>"]
        if means:
            table = tabulate_scores(list(means), list(means.values()), head="split")
            parts.append(table.to_html(index=False, border=0))
        if self.summary["method"] not in BASELINES:
            parts.append(_draw_html(self.plot()))
        return "\n".join(parts)


def _draw_html(figure: Figure) -> str:
    """Its picture, with the colours that the page of a report would give it."""
    colours = [f"{name[len('var(') : -1]}: {colour}" for colour, name in VARIABLES.items()]
    style = "; ".join([*colours, "background: var(--paper)"])
    return f'<div style="{style}">{draw_svg(figure, "The tree")}</div>'
