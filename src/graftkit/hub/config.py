"""Where is it shared, and how much of it?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubConfig:
    """Where is it shared, and how much of it?"""

    push_to: str | None = None
    """repository on the Hub that the run is pushed to, such as me/my-model; made where there is none"""
    private: bool = False
    """make the repository private, if it is made"""
    revision: str | None = None
    """branch to push to, by default main; made where there is none"""
    create_pr: bool = False
    """open a pull request in place of a commit on the branch"""
    tag: str | None = None
    """tag of the commit that is pushed, such as v1"""
    message: str | None = None
    """title of the commit; by default it states the score"""
    card: str | None = None
    """Markdown file with your own words for the model card, and your own metadata in its front matter"""
    base_id: str | None = None
    """Hub id of the base model, where it was loaded from a folder; the weights are compared by hash"""
    merge: bool = False
    """add an adapter to its base's weights, and push a plain model"""
    with_rows: bool = False
    """push the texts, or small pictures, of dev and test rows too; without it none leaves this
    machine, and of each row only its label, answer, length or size, and the number of its group"""
