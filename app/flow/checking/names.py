"""Holds what a campaign says against what `lifecycle.yaml` declares and against itself: names, texts, values, order and reach of steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from app.flow.checking.files import Places
from app.flow.checking.yaml import Place
from app.flow.composing.templates import check as check_template
from app.rules.conditions import Condition, ConditionError, Schema, check_path, compile_condition, typed
from app.rules.definition import (
    BranchStep,
    Campaign,
    EmailStep,
    ExitStep,
    Recipients,
    SetStep,
    SplitStep,
    SurveyStep,
    WaitForStep,
    WaitStep,
    conditions_of,
    inside,
    kind_of,
    walk,
)
from app.rules.facts import OWN_PREFIX, Account, Scope
from app.rules.fields import Problem, nearest
from app.rules.lifecycle import TRANSACTIONAL, Brand, Lifecycle
from app.rules.reasons import span
from app.rules.timing import duration

METRICS = "usage.NAME.last_30d, usage.NAME.previous_30d, usage.seats.share, milestones.share, survey.nps, survey.csat, survey.ces"
# What the layout and the blocks of a mail may read besides what is known of the account.
MAIL = (
    "subject",
    "unsubscribe_url",
    "preferences_url",
    "view_url",
    "pixel_url",
    "privacy_url",
    "honeypot_url",
    "why",
    "scale",
    "scores",
    "question",
    "link",
)

_OPENS = re.compile(r"e-?mail[\s_.:-]*open|open(?:s|ed)?[\s_.:-]*(?:an?[\s_-]*)?e-?mail", re.IGNORECASE)
_DATES = frozenset({"account.created_at", "account.renewal_date", "stage.entered_at", "enrollment.entered_at", "event.occurred_at", "now"})
_ACCOUNT_DATES = ("account.created_at", "account.renewal_date")


class Against:
    """One file held against the lifecycle; `problems` and `warnings` take what is found."""

    def __init__(self, lifecycle: Lifecycle, places: Places, problems: list[Problem], warnings: list[Problem]):
        self.lifecycle, self.schema = lifecycle, lifecycle.schema
        self.places, self.problems, self.warnings = places, problems, warnings
        self.stages = [stage.name for stage in lifecycle.stages]
        self.topics = [*lifecycle.topics, TRANSACTIONAL]

    def problem(self, rule: str, message: str, place: Place, fix: str | None = None) -> None:
        self.problems.append(self.places.problem(rule, message, place, fix=fix))

    def warn(self, rule: str, message: str, place: Place, *, key: bool = False) -> None:
        self.warnings.append(self.places.problem(rule, message, place, key=key, severity="warning"))

    def no_open(self, event: str | None, place: Place) -> None:
        """Warns of an event that tells of a mail's opening (T-03)."""
        if event is not None and _OPENS.search(event):
            own = "never comes, as opens raise no event" if event.startswith(OWN_PREFIX) else "tells of an open"
            proof = "mail programs load images that nobody looks at, and keep from loading those that somebody reads"
            self.warn("open", f"{event} {own}: {proof}. Listen for a click, or for what is done in the product", place)

    def known(self, name: str | None, names: Iterable[str], what: str, place: Place) -> bool:
        """Whether `name` is one of `names`, or is not given."""
        names = list(names)
        if name is None or name in names:
            return True
        there = f"there are: {', '.join(names)}" if names else "there is none"
        self.problem("name", f"{what} {name} is not declared in lifecycle.yaml; {there}", place, nearest(name, names))
        return False

    def condition(self, source: str, place: Place) -> Condition | None:
        try:
            return compile_condition(source, self.schema)
        except ConditionError as error:
            shown = source if len(source) <= 100 else f"{source[:97]}…"
            self.problem("condition", f"{shown!r}: {error.problem}", place, error.fix)
            return None

    def text(self, text: str, place: Place, *, mail: bool) -> None:
        """A text with merge tags: of a mail, which knows the brand, or of a notice, which does not."""
        checked = check_template(text)
        for flaw in checked.flaws:
            self.problem("template", flaw.problem, place, flaw.fix)
        for path in checked.reads:
            if not mail and path[0] in ("brand", "mail"):
                self.problem("name", f"{'.'.join(map(str, path))} is for mails only", place)
            elif problem := path_problem(path, self.schema, self.lifecycle.brand, layout=False):
                self.problem("name", problem.problem, place, problem.fix)

    def date(self, path: str, place: Place) -> None:
        """A path that must name a date."""
        try:
            check_path(tuple(path.split(".")), self.schema)
        except ConditionError:
            return  # a name that does not exist, which the look at all conditions tells
        kind = kind_of_path(path, self.schema)
        if kind not in (None, "date"):
            self.problem("type", f"{path} is not a date, but {kind}", place)


def path_problem(path: tuple, schema: Schema, brand: Brand, *, layout: bool) -> ConditionError | None:
    """What is wrong with a path that a template reads, if anything. `layout` says whether `mail.…` is known there."""
    root, words = path[0], [str(part) for part in path]
    if root == "brand":
        field = words[1] if len(words) == 2 else ""
        if field not in Brand.model_fields:
            names = [f"brand.{name}" for name in Brand.model_fields]
            return ConditionError(f"{'.'.join(words)} is not a name; there are {', '.join(names)}", nearest(".".join(words), names))
        return None
    if root == "mail":
        names = [f"mail.{name}" for name in MAIL if name not in ("scale", "scores", "link")]
        if len(words) < 2 or words[1] not in MAIL:
            return ConditionError(f"{'.'.join(words)} is not a name; there are {', '.join(names)}", nearest(".".join(words), names))
        return None if layout else ConditionError(f"{'.'.join(words)} is not known here, only in the template")
    try:
        check_path(tuple(part for part in path if isinstance(part, str)), schema)
    except ConditionError as error:
        return error
    return None


def kind_of_path(path: str, schema: Schema) -> str | None:
    """text, number, boolean, date or list; None where it cannot be told (the properties of an event, what does not exist)."""
    words = path.split(".")
    if words[1:2] == ["traits"] and len(words) == 3 and words[0] in ("account", "contact"):
        return (schema.account_traits if words[0] == "account" else schema.contact_traits).get(words[2])
    if path in _DATES or words[-1] in ("reached_at", "last_at"):
        return "date"
    if words[0] == "event" or words[1:2] == ["traits"]:
        return None
    if path in ("account.seats", "account.revenue", "health.score", "response.score", "utilization") or words[0] == "usage":
        return "number"
    if words[-1] in ("reached", "overdue"):
        return "boolean"
    return "list" if path == "contact.roles" else "text"


def check_lifecycle(against: Against) -> None:
    """What `lifecycle.yaml` says, beyond what its model can know."""
    lifecycle = against.lifecycle
    for number, stage in enumerate(lifecycle.stages):
        for name in ("enter_when", "exit_when"):
            if source := getattr(stage, name):
                against.condition(source, ("stages", number, name))
    for group in ("milestones", "usage"):
        for name, spec in getattr(lifecycle, group).items():
            if spec.where:
                against.condition(spec.where, (group, name, "where"))
            against.no_open(spec.event, (group, name, "event"))
    for number, group in enumerate(lifecycle.health.groups if lifecycle.health else ()):
        for index, measure in enumerate(group.measures):
            names = [*(f"usage.{name}.last_30d" for name in lifecycle.usage), *METRICS.split(", ")[2:]]
            if not _is_metric(measure.metric, lifecycle):
                place = ("health", "groups", number, "measures", index, "metric")
                against.problem("name", f"{measure.metric} is not a metric; there are {METRICS}", place, nearest(measure.metric, names))


def _is_metric(metric: str, lifecycle: Lifecycle) -> bool:
    words = metric.split(".")
    if len(words) == 3 and words[0] == "usage" and words[2].endswith("d"):
        kind, _, days = words[2][:-1].partition("_")
        if kind in ("last", "previous") and days.isdecimal() and days[0] != "0" and len(days) <= 4:
            return words[1] in lifecycle.usage
    return metric in METRICS.split(", ")[2:]


def check_campaign(against: Against, campaign: Campaign, key: str, campaigns: Mapping[str, Campaign | None]) -> None:
    """What a `campaign.yaml` says, beyond what its model can know. `campaigns` are all folders, None for one that cannot be read."""
    lifecycle = against.lifecycle
    against.known(campaign.stage, against.stages, "stage", ("stage",))
    against.known(campaign.topic, against.topics, "topic", ("topic",))
    against.known(campaign.sender, lifecycle.senders, "sender", ("sender",))
    _recipients(against, campaign.recipients, campaign, ("recipients",))
    _trigger(against, campaign, key, campaigns)
    against.no_open(campaign.trigger.event, ("trigger", "event"))
    if campaign.goal:
        against.no_open(campaign.goal.event, ("goal", "event"))
        against.known(campaign.goal.stage, against.stages, "stage", ("goal", "stage"))
        against.known(campaign.goal.milestone, lifecycle.milestones, "milestone", ("goal", "milestone"))
    constants: dict[Place, bool] = {}
    for place, source in conditions_of(campaign):
        condition = against.condition(source, place)
        if condition is not None and not condition.reads and "days_" not in source:
            constants[place] = condition.test(_NOBODY)
    before = _before(campaign.steps, {})
    steps: dict[str, Place] = {}
    for place, step in walk(campaign.steps):
        if isinstance(step, WaitForStep):
            against.no_open(step.wait_for.event, (*place, "wait_for", "event"))
        if step.id in steps:
            line, _ = against.places.tree.find((*steps[step.id], "id")) if against.places.tree else (1, 1)
            against.problem("step", f"the step id {step.id} is used twice, first in line {line}; ids are unique", (*place, "id"))
        steps.setdefault(step.id, place)
    by_id = {step.id: step for _, step in walk(campaign.steps)}
    for place, step in walk(campaign.steps):
        _Step(against, campaign, place, before.get(place, frozenset()), by_id).check(step)
    _reach(against, campaign.steps, ("steps",), constants)
    _window(against, campaign)
    _apart(against, campaign, campaigns)


_NOBODY = Scope(account=Account("", 0), now=None)  # type: ignore[arg-type]


def _recipients(against: Against, recipients: Recipients, campaign: Campaign, place: Place) -> None:
    for number, role in enumerate(recipients.roles):
        against.known(role, against.lifecycle.roles, "role", (*place, "roles", number))
    if campaign.enrolls == "contact" and (recipients.roles or recipients.pick == "all"):
        against.warn("recipients", "is not looked at: what a contact is enrolled in goes to that contact", place, key=True)


def _apart(against: Against, campaign: Campaign, campaigns: Mapping[str, Campaign | None]) -> None:
    """Transactional mail and mail that people may opt out of come from two addresses (B-07): complaints about the one would hit the
    other."""
    if TRANSACTIONAL not in _topics(campaign):
        return
    address = against.lifecycle.sender_of(campaign.sender).email.lower()
    for key, other in campaigns.items():
        if other and against.lifecycle.sender_of(other.sender).email.lower() == address and _topics(other) - {TRANSACTIONAL}:
            said = f"transactional mail comes from {address}, as does mail of {key} that people may opt out of; give it a sender of its own"
            against.warn("sender", said, ("topic",), key=True)
            return


def _topics(campaign: Campaign) -> set[str]:
    return {step.topic or campaign.topic for _, step in walk(campaign.steps) if isinstance(step, (EmailStep, SurveyStep))}


def _trigger(against: Against, campaign: Campaign, key: str, campaigns: Mapping[str, Campaign | None]) -> None:
    trigger, lifecycle = campaign.trigger, against.lifecycle
    against.known(trigger.milestone, lifecycle.milestones, "milestone", ("trigger", "milestone"))
    against.known(trigger.milestone_overdue, lifecycle.milestones, "milestone", ("trigger", "milestone_overdue"))
    spec = lifecycle.milestones.get(trigger.milestone_overdue or "")
    if spec is not None and spec.expected_within is None:
        problem = f"milestone {trigger.milestone_overdue} has no expected_within, so it never falls overdue"
        against.problem("trigger", problem, ("trigger", "milestone_overdue"))
    against.known(trigger.stage, against.stages, "stage", ("trigger", "stage"))
    against.known(trigger.stage_overdue, against.stages, "stage", ("trigger", "stage_overdue"))
    stage = next((one for one in lifecycle.stages if one.name == trigger.stage_overdue), None)
    if stage is not None and stage.at_most is None:
        against.problem("trigger", f"stage {stage.name} has no at_most, so it is never overdue", ("trigger", "stage_overdue"))
    if trigger.health and lifecycle.health is None:
        against.problem("trigger", "lifecycle.yaml has no health model, so there is never a score", ("trigger", "health"))
    if trigger.date:
        path = trigger.date.field
        if path.partition(".")[0] in ("event", "response", "enrollment"):
            dates = [*_ACCOUNT_DATES, *_traits(against.schema, "date")]
            problem = f"{path} is not known before a campaign begins; there are: {', '.join(dates)}"
            against.problem("trigger", problem, ("trigger", "date", "field"), nearest(path, dates))
        else:
            against.date(path, ("trigger", "date", "field"))
    if trigger.usage:
        against.known(trigger.usage.metric, lifecycle.usage, "usage metric", ("trigger", "usage", "metric"))
    if trigger.inactive:
        against.known(trigger.inactive.role, lifecycle.roles, "role", ("trigger", "inactive", "role"))
    against.known(trigger.role_vacant, lifecycle.roles, "role", ("trigger", "role_vacant"))
    for number, role in enumerate(getattr(trigger.contact_added, "roles", ())):
        against.known(role, lifecycle.roles, "role", ("trigger", "contact_added", "roles", number))
    if trigger.campaign:
        _other_campaign(against, trigger.campaign.campaign, trigger.campaign.result, key, campaigns)


def _other_campaign(against: Against, other: str, result: str, key: str, campaigns: Mapping[str, Campaign | None]) -> None:
    place = ("trigger", "campaign", "campaign")
    others = sorted(set(campaigns) - {key})
    if other == key:
        against.problem("trigger", "a campaign cannot start itself; `reentry` lets it come again", place)
    elif other not in campaigns:
        against.problem(
            "trigger", f"there is no campaign {other}; there are: {', '.join(others) or 'no others'}", place, nearest(other, others)
        )
    elif result == "goal" and (found := campaigns[other]) is not None and found.goal is None:
        against.problem("trigger", f"the campaign {other} has no goal that it could meet", place)


class _Step:
    """Looks at one step. `before` are the ids of the steps that may come before it, `steps` all of the campaign."""

    def __init__(self, against: Against, campaign: Campaign, place: Place, before: frozenset[str], steps: Mapping[str, Any]):
        self.against, self.campaign, self.place, self.before, self.steps = against, campaign, place, before, steps

    def check(self, step: Any) -> None:
        against, place = self.against, self.place
        if isinstance(step, EmailStep):
            self.mail(step)
        elif isinstance(step, WaitForStep):
            self.wait_for(step.wait_for)
        elif isinstance(step, WaitStep) and step.wait.until:
            against.date(step.wait.until, (*place, "wait", "until"))
        elif isinstance(step, SetStep):
            self.set(step)
        for kind, fields in (("alert", ("text",)), ("task", ("title", "note"))):
            for name in fields if kind_of(step) == kind else ():
                against.text(getattr(getattr(step, kind), name), (*place, kind, name), mail=False)
        if kind_of(step) == "webhook":
            self.channel(step.webhook.to, ("webhook", "to"))
            for name, value in step.webhook.data.items():
                if isinstance(value, str):
                    against.text(value, (*place, "webhook", "data", name), mail=False)
        elif kind_of(step) == "alert" and step.alert.to != "owner" and "@" not in step.alert.to:
            self.channel(step.alert.to, ("alert", "to"), "owner")

    def mail(self, step: EmailStep) -> None:
        against, place = self.against, self.place
        against.known(step.topic, against.topics, "topic", (*place, "topic"))
        against.text(step.subject, (*place, "subject"), mail=True)
        for language, subject in step.subjects.items():
            against.text(subject, (*place, "subjects", language), mail=True)
        if isinstance(step, SurveyStep):
            against.text(step.question, (*place, "question"), mail=True)
        if step.recipients:
            _recipients(against, step.recipients, self.campaign, (*place, "recipients"))
        wanted = step.recipients or self.campaign.recipients
        answered = any(isinstance(self.steps.get(name), SurveyStep) for name in self.before) or self.campaign.trigger.survey
        if wanted.pick == "responder" and self.campaign.enrolls == "account" and not answered:
            where = (*place, "recipients", "pick") if step.recipients else (*place, "id")
            against.problem("recipients", f"nobody has answered a survey before {step.id}, so `pick: responder` finds nobody", where)
        if step.reminds:
            self.earlier(step.reminds, EmailStep, "mail", "reminds")

    def wait_for(self, spec: Any) -> None:
        against, place = self.against, (*self.place, "wait_for")
        against.known(spec.milestone, against.lifecycle.milestones, "milestone", (*place, "milestone"))
        against.known(spec.stage, against.stages, "stage", (*place, "stage"))
        if spec.health and against.lifecycle.health is None:
            against.problem("step", "lifecycle.yaml has no health model, so there is never a band", (*place, "health"))
        for name, kind, what in (("survey", SurveyStep, "survey"), ("click", EmailStep, "mail"), ("reply", EmailStep, "mail")):
            if target := getattr(spec, name):
                self.earlier(target, kind, what, "wait_for", name)

    def earlier(self, target: str, kind: type, what: str, *place: str) -> None:
        """`target` must be a step of that kind that may come before this one."""
        names = [name for name in self.before if isinstance(self.steps.get(name), kind)]
        if target in names:
            return
        there = f"there are: {', '.join(sorted(names))}" if names else "there is none"
        if isinstance(self.steps.get(target), kind):
            problem = f"{target} never comes before this step"
        else:
            problem = f"{target} is no {what} step of this campaign"
        self.against.problem(
            "step", f"{problem}; of those that do, {there}" if names else problem, (*self.place, *place), nearest(target, names)
        )

    def channel(self, name: str, place: Place, *also: str) -> None:
        self.against.known(name, [*also, *self.against.lifecycle.channels], "channel", (*self.place, *place))

    def set(self, step: SetStep) -> None:
        schema = self.against.schema
        for path, value in step.set.items():
            root, _, trait = path.split(".")
            traits = schema.account_traits if root == "account" else schema.contact_traits
            place = (*self.place, "set", path)
            if trait not in traits:
                near = nearest(trait, traits)
                problem = f"{path} is not declared under traits in lifecycle.yaml"
                self.against.problem("name", problem, place, near and f"{root}.traits.{near}")
            elif traits[trait] == "list":
                self.against.problem("type", f"{path} is a list, which a step cannot set", place)
            elif value is not None and (
                isinstance(value, str) and "{" in value and traits[trait] != "text" or not _is(value, traits[trait])
            ):
                self.against.problem("type", f"{path} is declared as {traits[trait]}, and {value!r} is none", place)


def _is(value: Any, kind: str) -> bool:
    found = typed(value, kind)
    return found == value if kind != "date" else hasattr(found, "isoformat")


def _traits(schema: Schema, kind: str) -> list[str]:
    return [
        f"{root}.traits.{name}"
        for root, traits in (("account", schema.account_traits), ("contact", schema.contact_traits))
        for name, declared in traits.items()
        if declared == kind
    ]


# The way through the steps ---------------------------------------------------------------------------------------------


def _before(steps: list[Any], found: dict[Place, frozenset[str]], come: frozenset[str] = frozenset(), place: Place = ("steps",)) -> dict:
    """By place: the ids of the steps that may come before it."""
    for index, step in enumerate(steps):
        here = (*place, index)
        found[here] = come
        come |= {step.id}
        after = come
        for inner, nested in inside(step):
            _before(nested, found, come, (*here, *inner))
            after |= {one.id for _, one in walk(nested)}
        come = after
    return found


def _reach(against: Against, steps: list[Any], place: Place, constants: Mapping[Place, bool]) -> bool:
    """Names the steps that nobody can reach. Returns whether whoever begins `steps` may come out at their end."""
    for index, step in enumerate(steps):
        goes_on = _passes(against, step, (*place, index), constants)
        if not goes_on and index + 1 < len(steps):
            rest = steps[index + 1]
            against.problem("reach", f"nobody comes to {rest.id}: every way ends at {step.id}", (*place, index + 1, "id"))
            return False
        if not goes_on:
            return False
    return True


def _passes(against: Against, step: Any, place: Place, constants: Mapping[Place, bool]) -> bool:
    if isinstance(step, ExitStep):
        return False
    ways = [_reach(against, nested, (*place, *inner), constants) if nested else True for inner, nested in inside(step)]
    if isinstance(step, SplitStep):
        return any(ways)
    if not isinstance(step, BranchStep):
        return True  # a wait_for also ends when what it waits for comes
    seen: dict[str, int] = {}
    open_ways = []
    for number, (arm, way) in enumerate(zip(step.branch, ways, strict=True)):
        here = (*place, "branch", number)
        always = constants.get((*here, "when"))
        if arm.when is not None and arm.when in seen:
            against.problem("reach", f"nobody comes to this arm: arm {seen[arm.when] + 1} asks the same", (*here, "when"))
        elif always is False:
            against.problem("reach", "nobody comes to this arm: its condition is never true", (*here, "when"))
        else:
            open_ways.append(way)
        seen.setdefault(arm.when or "", number)
        if always and number + 1 < len(step.branch):
            key = "when" if step.branch[number + 1].when is not None else "else"
            problem = f"nobody comes to this arm: the condition of arm {number + 1} is always true"
            against.problem("reach", problem, (*place, "branch", number + 1, key))
            return any(open_ways)
        if always:
            return any(open_ways)
    has_else = step.branch[-1].otherwise is not None
    return any(open_ways) or not has_else


def _window(against: Against, campaign: Campaign) -> None:
    """A campaign that takes longer than its goal counts."""
    if campaign.goal is None or campaign.goal.within is None:
        return
    longest = _longest(campaign.steps)
    if longest > campaign.goal.within:
        problem = f"the steps may take {span(longest)}, but the goal only counts within {span(campaign.goal.within)}"
        against.warn("goal", problem, ("goal", "within"))


def _longest(steps: list[Any]) -> timedelta:
    total = timedelta(0)
    for step in steps:
        inner = max((_longest(nested) for _, nested in inside(step)), default=timedelta(0))
        if isinstance(step, WaitStep):
            total += step.wait.span or timedelta(days=step.wait.days or 0)
        elif isinstance(step, WaitForStep):
            total += step.wait_for.timeout + inner
        else:
            total += inner
        if repeat := getattr(step, "repeat", None):
            total += min(repeat.every * (repeat.at_most - 1), duration("36500d"))
    return min(total, duration("36500d"))
