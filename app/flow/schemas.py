"""JSON Schemas of the definition files, for editors: a YAML language server completes and checks by them what `nurture check` checks.

Made from the same models that read the files. What a model takes in short (`wait: 3d`) and what it asks for beyond types (exactly one
kind of trigger) is added here. `write` puts them beside the campaigns, whose files name them by relative path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from app.rules.definition import Campaign
from app.rules.lifecycle import Lifecycle
from app.rules.scenario import EXPECTATIONS, HAPPENINGS, Scenarios
from app.rules.triggers import BANDS, KINDS

FOLDER = ".schemas"
# The files that have a schema: name → model. One line for another kind of file, and its fields below.
MODELS: Mapping[str, type[BaseModel]] = {"lifecycle": Lifecycle, "campaign": Campaign, "tests": Scenarios}


def write(folder: Path) -> list[Path]:
    """Writes every schema into `folder`, which is made if need be. Returns the files. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, model in MODELS.items():
        path = folder / f"{name}.schema.json"
        path.write_text(text_of(model), "utf-8", newline="\n")
        written.append(path)
    return written


def text_of(model: type[BaseModel]) -> str:
    """The file's content: the same for the same model."""
    return json.dumps(schema_of(model), indent=2, ensure_ascii=False) + "\n"


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a definition file that `model` reads."""
    schema = {"$schema": GenerateJsonSchema.schema_dialect, **model.model_json_schema()}
    for name, one in {model.__name__: schema, **schema.get("$defs", {})}.items():
        _tidy(one)
        for field, about in one.get("properties", {}).items():
            _describe(about, FIELDS.get(f"{name}.{field}") or FIELDS.get(field))
        if kinds := ONE_OF.get(name):
            one["oneOf"] = [{"required": [kind]} for kind in kinds]
    for name, short in SHORT.items():
        if name in schema.get("$defs", {}):
            long = schema["$defs"].pop(name)
            schema["$defs"][name] = {"description": long.pop("description", name), "anyOf": [short, long]}
    return schema


def _tidy(node: Any) -> None:
    """Leaves out what only tells an editor about our code: titles, and that a field which is not given is nothing."""
    if isinstance(node, list):
        for one in node:
            _tidy(one)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        node.pop("title")
    if "anyOf" in node and node.get("default", 0) is None:
        left = [one for one in node.pop("anyOf") if one != {"type": "null"}]
        node.update(left[0] if len(left) == 1 else {"anyOf": left})
    if "default" in node:
        default = node.pop("default")
        if isinstance(default, str) and "pattern" in node:
            default = _written(default)
        if isinstance(default, (str, int, float)):
            node["default"] = default
    if "patternProperties" in node:
        node["additionalProperties"] = False
    if isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split())
    for name, value in node.items():
        if name == "properties":
            for one in value.values():
                _tidy(one)
        elif name not in ("default", "examples", "enum", "const", "required", "$defs"):
            _tidy(value)


def _written(duration: str) -> str:
    """An ISO 8601 duration as the files write it."""
    found = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", duration)
    parts = zip(found.groups(), "dhms", strict=True) if found else ()
    return "".join(f"{int(count)}{unit}" for count, unit in parts if count and int(count)) or ("0d" if found else duration)


def _describe(about: dict[str, Any], says: str | None) -> None:
    if not says:
        return
    form = about.get("description")
    about["description"] = f"{says} {form}" if form else says


# Of these models, exactly one of the fields is given.
ONE_OF: Mapping[str, tuple[str, ...]] = {
    "Trigger": KINDS,
    "Goal": ("milestone", "event", "stage", "when"),
    "WaitForSpec": ("milestone", "stage", "health", "event", "survey", "click", "reply"),
    "WaitSpec": ("days", "until", "span"),
    "UsageTrigger": ("drop", "rise"),
    "UtilizationTrigger": ("above", "below"),
    "HealthTrigger": ("band", "below", "above"),
    "Arm": ("when", "else"),
    "Happening": HAPPENINGS,
    "Expectation": EXPECTATIONS,
}
# What may be written instead of the whole.
SHORT: Mapping[str, dict[str, Any]] = {
    "WaitSpec": {
        "type": "string",
        "pattern": r"^(?=.*[1-9])(\d{1,4}w)?(\d{1,5}d)?(\d{1,5}h)?(\d{1,6}m)?(\d{1,7}s)?$",
        "examples": ["2d", "36h"],
    },
    "HealthTrigger": {"enum": list(BANDS)},
}
# What an editor shows beside a field, by model and field, or by field alone where it means the same everywhere.
FIELDS: Mapping[str, str] = {
    "name": "What people call it.",
    "label": "What people call it.",
    "where": 'A condition on the event, such as event.properties.plan == "pro".',
    "id": "What enrollments remember. Unique within the campaign, never used again for something else.",
    "topic": "What the mail is about, for opt-outs: a topic of lifecycle.yaml, or transactional.",
    "recipients": "Which members of the account get the mail; asked anew at each step.",
    "roles": "Roles of lifecycle.yaml, in order of preference.",
    "repeat": "The step again every so often.",
    "weight": "Its part of the whole.",
    "metric": "A usage metric of lifecycle.yaml.",
    "Lifecycle.timezone": "The zone for whoever has none, such as Europe/Berlin.",
    "Lifecycle.brand": "Who writes: shown in every mail, read by templates as brand.…",
    "Lifecycle.senders": "Who mail comes from, by name; one is called default.",
    "Lifecycle.topics": "What a person can opt out of. The topic transactional exists always.",
    "Lifecycle.roles": "The roles that campaigns may write to, each with a description.",
    "Lifecycle.stages": "Where an account is, in order; every account starts in the first.",
    "Lifecycle.milestones": "What an account should reach, by name.",
    "Lifecycle.traits": "What conditions and templates may read as account.traits.… and contact.traits.…, with types.",
    "Lifecycle.usage": "Usage metrics, by name.",
    "Lifecycle.caps": "How many messages at most, in rolling windows over all campaigns.",
    "Lifecycle.jitter": "How far the opening of a send window is spread.",
    "Lifecycle.channels": "Where alerts and webhooks may go, each with a description; `nurture channels set` gives the address.",
    "Lifecycle.brakes": "When mail stops by itself, since too many complain or too much bounces.",
    "Lifecycle.survey": "How often a person is asked.",
    "Lifecycle.tracking": "Whether opens and clicks are recorded.",
    "Lifecycle.retention": "How long things are kept before they go by themselves.",
    "Lifecycle.health": "The model of the health score.",
    "Brand.website": "Linked from the logo.",
    "Brand.app_url": "Where the product is, for links of templates.",
    "Brand.support_email": "Where a reader finds help.",
    "Brand.postal_address": "The postal address that stands in every mail, as the law asks.",
    "Brand.color": "The color of links and buttons.",
    "Sender.email": "The address that mail comes from.",
    "Sender.reply_to": "Where answers go.",
    "Sender.owner": "Whether mail comes in the name of the account's owner.",
    "Sender.transport": "The relay that carries this sender's mail, whatever its topic; an installation gives it its address.",
    "Topic.description": "Shown on the preference page.",
    "Topic.transport": "The relay that carries mail of this topic, unless the sender has one.",
    "Lifecycle.sending": "How long mail is tried, and how long evidence of an unknown outcome is waited for.",
    "Sending.marketing": "How long mail that a relay puts off is tried again.",
    "Sending.transactional": "How long transactional mail that a relay puts off is tried again.",
    "Sending.unknown": "How long evidence of an unknown outcome is waited for.",
    "StageSpec.name": "Its name in conditions and campaigns.",
    "StageSpec.enter_when": "A condition that takes an account in from any other stage.",
    "StageSpec.exit_when": "A condition that ends the stage.",
    "StageSpec.next": "The stage that leaving leads to; by default the one after it.",
    "StageSpec.at_most": "After this time the account is overdue in the stage.",
    "StageSpec.then": "What happens then: it stays, or goes on to the next stage.",
    "MilestoneSpec.event": "The event that reaches it.",
    "MilestoneSpec.expected_within": "Counted from the account's first event; then it falls overdue.",
    "MetricSpec.event": "The event that is counted.",
    "MetricSpec.contacts": "Whether to know how many different people it came from.",
    "Traits.account": "Traits of accounts: text, number, boolean, date or list.",
    "Traits.contact": "Traits of contacts: text, number, boolean, date or list.",
    "Cap.topic": "Only messages of this topic; without it, all but transactional ones.",
    "Cap.per": "Whose messages are counted.",
    "Cap.at_most": "So many.",
    "Cap.within": "Within a rolling window of this length.",
    "SurveyRules.quarantine": "How long nobody who was asked is asked again.",
    "SurveyRules.closes_after": "How long an answer is taken.",
    "Brakes.complaints": "Complaints about what was delivered from a domain, within 24 hours and within 7 days.",
    "Brakes.bounces": "Bounces among the first mails of a campaign.",
    "Brakes.tell": "The channel by which the operators hear of it.",
    "ComplaintBrake.warn": "From this share on there is a warning.",
    "ComplaintBrake.pause": "From this share on the domain's mail waits.",
    "ComplaintBrake.delivered": "Not before so many were delivered.",
    "BounceBrake.pause": "From this share on the campaign is paused.",
    "BounceBrake.first": "Only so many first mails of a campaign count.",
    "BounceBrake.after": "Not before there are so many.",
    "Tracking.opens": "What is kept of an open: nothing, all after a yes, the last day only, or all unless the person says no.",
    "Tracking.opens_in": "The mode of countries that have one of their own, by two capital letters.",
    "Tracking.clicks": "Whether clicks are recorded: never, only after a yes, or unless the person says no.",
    "Tracking.transactional": "Whether transactional mail is tracked, too.",
    "Retention.hits": "Who fetched a link.",
    "Retention.networks": "The truncated network and the browser of a hit.",
    "Retention.rendered": "The values mails were rendered with, the relay's words, the outbox, and what alerts said.",
    "Retention.links": "Rendered destinations of links; those without merge tags lead on for good.",
    "Retention.events": "Events; the keys by which they count once stay.",
    "Retention.decisions": "The ledger.",
    "Retention.webhooks": "Raw bodies of providers' webhooks.",
    "Retention.inbound": "Raw mail that came back.",
    "Measure.metric": "usage.NAME.last_30d or .previous_30d, usage.seats.share, milestones.share, survey.nps, survey.csat or survey.ces.",
    "Measure.worst": "The value that is worth 0 points.",
    "Measure.best": "The value that is worth 100 points.",
    "Measure.half_life": "After this time an answer weighs half.",
    "MeasureGroup.measures": "What the group is made of.",
    "HealthModel.minimum_coverage": "Below this part of the weight with data there is no score.",
    "HealthModel.groups": "Measures, in groups with weights.",
    "Campaign.description": "What it is for.",
    "Campaign.stage": "The lifecycle stage it belongs to. It orders and labels, and keeps nobody out.",
    "Campaign.mode": "Counts when it is published for the first time.",
    "Campaign.priority": "0 to 100; when a cap allows only one, the higher goes.",
    "Campaign.enrolls": "Who goes through: the account, or one contact.",
    "Campaign.trigger": "What starts an enrollment: exactly one kind.",
    "Campaign.audience": "A condition, asked at the trigger and again before each mail.",
    "Campaign.per_account": "Whether a person in several accounts gets a step once for each.",
    "Campaign.reentry": "never, or {after: 90d} counted from the last end.",
    "Campaign.goal": "What the campaign wants to reach.",
    "Campaign.exit_when": "A condition that ends the enrollment.",
    "Campaign.holdout": "The share of accounts that gets nothing, to compare with.",
    "Campaign.send_window": "When mail may go, in the recipient's zone.",
    "Campaign.sender": "A sender of lifecycle.yaml.",
    "Campaign.expires": "How long a message may wait to be sent.",
    "Campaign.recipient_wait": "How long a step waits for somebody who can be reached.",
    "Campaign.steps": "What happens, in order.",
    "Recipients.pick": "first: the first who can be reached; all; or responder: whoever answered the survey.",
    "Reentry.after": "Counted from the end of the last time.",
    "Goal.milestone": "Reaching it meets the goal.",
    "Goal.event": "The event that meets the goal.",
    "Goal.stage": "Entering it meets the goal.",
    "Goal.when": "A condition that meets the goal.",
    "Goal.within": "The goal only counts so long after entry.",
    "Goal.then": "What happens then: the enrollment ends, or goes on.",
    "SendWindow.days": "On which days.",
    "SendWindow.hours": 'Between which hours, in quotes, such as "09:00-17:00".',
    "WaitSpec.days": "So many calendar days, in the recipient's zone.",
    "WaitSpec.at": "At this time of day.",
    "WaitSpec.until": "A date, such as account.renewal_date.",
    "WaitSpec.offset": "So long before (-) or after the date.",
    "WaitSpec.if_past": "What happens when the date has passed or is not known.",
    "WaitSpec.span": "So long; also written as `wait: 2d`.",
    "WaitForSpec.milestone": "Until it is reached; passes at once if it is.",
    "WaitForSpec.stage": "Until the account is in it.",
    "WaitForSpec.health": "Until the health is in this band.",
    "WaitForSpec.event": "Until this event comes; counted from enrollment on.",
    "WaitForSpec.survey": "Until the survey of this step is answered.",
    "WaitForSpec.click": "Until a person clicks in the mail of this step.",
    "WaitForSpec.reply": "Until a person answers the mail of this step.",
    "WaitForSpec.timeout": "At most so long.",
    "Repeat.every": "How often, counted from the first time.",
    "Repeat.until": "A condition that ends it.",
    "Repeat.at_most": "So many times.",
    "AlertSpec.to": "owner, a channel of lifecycle.yaml, or an address.",
    "AlertSpec.text": "What it says, with merge tags.",
    "TaskSpec.title": "What is to be done, with merge tags.",
    "TaskSpec.note": "More about it, with merge tags.",
    "TaskSpec.to": "owner, or an address.",
    "TaskSpec.due": "By when.",
    "WebhookSpec.to": "A channel of lifecycle.yaml.",
    "WebhookSpec.data": "What goes with it, by name; texts with merge tags.",
    "email": "The template: a file beside campaign.yaml, such as welcome.mjml.",
    "subject": "The subject, with merge tags.",
    "subjects": "The subject in other languages, such as de, for which there is a template such as welcome.de.mjml.",
    "reminds": "An earlier mail step: this one goes to who got that one and has not answered or clicked.",
    "SurveyStep.survey": "nps (0 to 10), csat (1 to 5) or ces (1 to 7).",
    "SurveyStep.question": "What is asked.",
    "WaitStep.wait": "A duration such as 2d, or calendar days, or until a date.",
    "WaitForStep.wait_for": "Waits until something is so, or comes.",
    "WaitForStep.on_timeout": "Done when it does not come in time; then it goes on behind.",
    "BranchStep.branch": "The first arm whose condition is true is taken, else `else`, else nothing.",
    "Arm.when": "The condition of this arm.",
    "Arm.steps": "What is done then.",
    "Arm.else": "What is done when no arm before is taken.",
    "SplitStep.split": "Two or more arms, drawn by weight; everybody keeps their arm.",
    "SplitArm.name": "The name of the arm in reports.",
    "SplitArm.steps": "What is done in this arm; nothing, if not given.",
    "AlertStep.alert": "A notice to staff.",
    "TaskStep.task": "Something for a person to do.",
    "WebhookStep.webhook": "A signed call of a channel.",
    "SetStep.set": "Traits and their new values, such as {account.traits.plan: pro}.",
    "ExitStep.exit": "Ends the enrollment; the text says why.",
    "Trigger.event": "The event with this name comes.",
    "Trigger.milestone": "The milestone is reached.",
    "Trigger.milestone_overdue": "The milestone was not reached within its time.",
    "Trigger.stage": "The account enters the stage.",
    "Trigger.stage_overdue": "The account has been in the stage longer than its at_most.",
    "Trigger.health": "The health enters a band, or the score crosses a value.",
    "Trigger.date": "So long before or after a date.",
    "Trigger.survey": "A survey is answered with a score in a range.",
    "Trigger.usage": "A usage metric fell or rose.",
    "Trigger.utilization": "The share of used seats crosses a value.",
    "Trigger.inactive": "A contact was silent for so many days.",
    "Trigger.role_vacant": "Nobody has the role any more.",
    "Trigger.contact_added": "Somebody joined the account.",
    "Trigger.campaign": "Another campaign ended, or met its goal.",
    "Trigger.manual": "Only by hand: nurture enroll.",
    "SurveyTrigger.type": "The kind of survey.",
    "SurveyTrigger.score": "From and to, both included, such as [0, 6].",
    "HealthTrigger.band": "The band that is entered.",
    "HealthTrigger.below": "The score falls below this.",
    "HealthTrigger.above": "The score rises above this.",
    "DateTrigger.field": "A date of the account or of each contact, such as account.renewal_date.",
    "DateTrigger.offset": "So long before (-) or after it.",
    "UsageTrigger.drop": "Fell by this share against the window before.",
    "UsageTrigger.rise": "Rose by this share against the window before.",
    "UsageTrigger.window": "1 to 180 whole days.",
    "UsageTrigger.at_least": "So many in the larger of the two windows, or it does not count.",
    "UtilizationTrigger.above": "Rises above this share.",
    "UtilizationTrigger.below": "Falls below this share.",
    "InactiveTrigger.role": "Only contacts with this role.",
    "InactiveTrigger.days": "So many days.",
    "ContactAdded.roles": "Only with one of these roles.",
    "CampaignTrigger.campaign": "The other campaign's folder, such as onboarding/first-value.",
    "CampaignTrigger.result": "How it ended.",
    "Scenarios.tests": "The tests of the campaign beside it.",
    "Scenario.name": "What it shows.",
    "Scenario.given": "Who it is about.",
    "Scenario.start": "When it begins; a Monday morning if not given.",
    "Scenario.events": "What happens, in any order.",
    "Scenario.along": "Other campaigns that run with it; theirs is not compared.",
    "Scenario.until": "How long the clock runs.",
    "Scenario.expect": "What must come, in any order; mails, alerts, tasks and webhooks that are not here must not come.",
    "Given.account": "The traits that a group event would carry.",
    "Given.contacts": "Contacts by id, each with the traits of an identify event; roles among them.",
    "Given.stage": "The stage that the account is in; the first one if none is named.",
    "Given.milestones": "Milestones that were reached before.",
    "Given.suppressions": "What is closed to a contact: topics, or all, bounced, complained, manual.",
    "Happening.at": "When.",
    "Happening.by": "The contact; the first one if none is named.",
    "Happening.track": "The event with this name comes.",
    "Happening.properties": "The properties of the event.",
    "Happening.group": "Traits of the account that come.",
    "Happening.identify": "Traits of the contact that come.",
    "Happening.answer": "The contact answers the survey of this step, with a score.",
    "Happening.score": "The score of the answer.",
    "Happening.comment": "The comment of the answer.",
    "Happening.click": "The contact clicks in the mail of this step.",
    "Happening.reply": "The contact answers the mail of this step, with the words of `comment`.",
    "Happening.bounce": "The mail of this step bounces.",
    "Happening.unsubscribe": "The contact unsubscribes from the mail of this step.",
    "Happening.after": "So long after the mail was sent.",
    "Happening.health": "The health is assessed.",
    "Happening.hold": "A hold on the account, so long.",
    "Happening.enroll": "An enrollment by hand.",
    "Health.score": "0 to 100.",
    "Health.band": "The band of the score.",
    "Health.previous_score": "The score before.",
    "Health.previous_band": "The band before.",
    "Expectation.mail": "The mail of this step is sent.",
    "Expectation.skip": "The mail of this step is skipped.",
    "Expectation.alert": "The alert of this step is made.",
    "Expectation.task": "The task of this step is made.",
    "Expectation.webhook": "The webhook of this step is called.",
    "Expectation.ended": "The enrollment ends: finished, or the reason it left for.",
    "Expectation.reason": "The ledger gives this reason.",
    "Expectation.stage": "The account is in this stage in the end.",
    "Expectation.milestone": "The milestone is reached in the end.",
    "Expectation.trait": "Traits and their values in the end.",
    "Expectation.to": "To this contact.",
    "Expectation.at": "At this time.",
    "Expectation.subject": "A part of the subject.",
    "Expectation.text": "A part of the text.",
    "Expectation.why": "The reason of the skip.",
}
