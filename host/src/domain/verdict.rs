//! What to do with a step whose intent is recorded and whose result is not. Pure: the caller
//! looks at the world and hands in what it saw. Never guesses: what cannot be told goes to a
//! person.

use serde::Serialize;

/// The hash that stands for a file that does not exist.
pub const ABSENT: &str = "absent";

/// The kind of an interrupted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An LLM call: may be made again, and what was perhaps paid is counted.
    Llm,
    /// A tool call: judged by its hashes, unless it only reads.
    Tool,
    /// A proposal: found again by its key, so making it again is harmless.
    Propose,
    /// A recorded answer such as the time: nothing outside changed.
    Answer,
}

/// What was recorded before the step was begun.
#[derive(Clone, Copy, Debug)]
pub struct Intent<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The tool's or provider's name, for the evidence.
    pub name: &'a str,
    /// Hash of the target before the effect, if it has a target; [`ABSENT`] for no file.
    pub pre_hash: Option<&'a str>,
    /// Hash the target will have after it.
    pub post_hash: Option<&'a str>,
    /// True when doing it twice is the same as doing it once (it only reads, or says so).
    pub repeatable: bool,
}

/// The word of a verdict, as the reference spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// The effect landed; its result is to be recorded, it is not done again.
    AlreadyDone,
    /// The effect did not land, or landing twice is harmless.
    SafeToRetry,
    /// Only a person can tell.
    ManualReview,
}

/// A ruling and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What to do.
    pub ruling: Ruling,
    /// Why, one constant word, recorded as evidence.
    pub reason: &'static str,
}

impl Verdict {
    const fn new(ruling: Ruling, reason: &'static str) -> Self {
        Self { ruling, reason }
    }
}

/// Judges an interrupted step by the target's hash as it is now; `None` when nobody can look.
///
/// A target that has its expected hash is done even if that is also its former one: then there
/// was nothing to change.
#[must_use]
pub fn judge(intent: &Intent<'_>, world: Option<&str>) -> Verdict {
    match intent.kind {
        Kind::Llm => return Verdict::new(Ruling::SafeToRetry, "llm_call_counted_as_unknown"),
        Kind::Propose => return Verdict::new(Ruling::SafeToRetry, "proposal_found_by_key"),
        Kind::Answer => return Verdict::new(Ruling::SafeToRetry, "nothing_outside_changed"),
        Kind::Tool => {}
    }
    let Some(world) = world else {
        return if intent.repeatable {
            Verdict::new(Ruling::SafeToRetry, "tool_is_repeatable")
        } else {
            Verdict::new(Ruling::ManualReview, "world_unknown")
        };
    };
    if intent.post_hash == Some(world) {
        Verdict::new(Ruling::AlreadyDone, "current_state_matches_expected_post")
    } else if intent.pre_hash == Some(world) {
        Verdict::new(Ruling::SafeToRetry, "current_pre_matches_expected")
    } else if intent.repeatable {
        Verdict::new(Ruling::SafeToRetry, "tool_is_repeatable")
    } else {
        Verdict::new(Ruling::ManualReview, "interrupted_during_execution")
    }
}

/// A step as a reference WAL file tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecordedStep {
    /// Its id, unique within its plan.
    pub step_id: String,
    /// Its tool, `ooda.act` for example.
    pub tool: Option<String>,
    /// Hash of its parameters.
    pub params_hash: Option<String>,
    /// Expected hash of the world before.
    pub pre_hash: Option<String>,
    /// Expected hash of the world after.
    pub expected_post_hash: Option<String>,
    /// Idempotency key.
    pub idem_key: Option<String>,
    /// Last recorded status; none before any.
    pub status: Option<String>,
    /// Hash seen when it began; none if it never did.
    pub observed_pre_hash: Option<String>,
    /// Hash seen when it completed.
    pub post_hash: Option<String>,
    /// Hash of its result.
    pub result_hash: Option<String>,
}

/// Judges a step of a reference file, highest rule first: a recorded completion is trusted; the
/// expected end state means done; a marked review stays one; what never began may be begun; the
/// expected start state means nothing happened; everything else is for a person.
#[must_use]
pub fn judge_recorded(step: &RecordedStep, current_pre: Option<&str>, current_post: Option<&str>) -> Verdict {
    let status = step.status.as_deref().unwrap_or("");
    let filled = |hash: &Option<String>| hash.as_deref().is_some_and(|hash| !hash.is_empty());
    if filled(&step.post_hash) {
        return Verdict::new(Ruling::AlreadyDone, "wal_recorded_completion");
    }
    if current_post.is_some() && current_post == step.expected_post_hash.as_deref() {
        return Verdict::new(Ruling::AlreadyDone, "current_state_matches_expected_post");
    }
    if status == "needs_review" {
        return Verdict::new(Ruling::ManualReview, "explicitly_marked_needs_review");
    }
    if step.observed_pre_hash.is_none() && !matches!(status, "executing" | "completed") {
        return Verdict::new(Ruling::SafeToRetry, "never_reached_executing");
    }
    if current_pre.is_some() && current_pre == step.pre_hash.as_deref() {
        return Verdict::new(Ruling::SafeToRetry, "current_pre_matches_expected");
    }
    Verdict::new(Ruling::ManualReview, "interrupted_during_execution")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit() -> Intent<'static> {
        Intent {
            kind: Kind::Tool,
            name: "fs.edit",
            pre_hash: Some("a"),
            post_hash: Some("b"),
            repeatable: false,
        }
    }

    #[test]
    fn an_edit_is_judged_by_the_file_as_it_is() {
        let cases = [
            (Some("b"), Ruling::AlreadyDone),
            (Some("a"), Ruling::SafeToRetry),
            (Some("c"), Ruling::ManualReview),
            (Some(ABSENT), Ruling::ManualReview),
            (None, Ruling::ManualReview),
        ];
        for (world, ruling) in cases {
            assert_eq!(judge(&edit(), world).ruling, ruling, "{world:?}");
        }
    }

    #[test]
    fn an_edit_that_changes_nothing_counts_as_done() {
        let same = Intent { post_hash: Some("a"), ..edit() };
        assert_eq!(judge(&same, Some("a")).ruling, Ruling::AlreadyDone);
    }

    #[test]
    fn reading_and_paying_may_be_done_again_but_a_blind_tool_may_not() {
        let blind = Intent { pre_hash: None, post_hash: None, ..edit() };
        assert_eq!(judge(&blind, None).ruling, Ruling::ManualReview);
        assert_eq!(judge(&blind, Some("x")).ruling, Ruling::ManualReview);
        assert_eq!(judge(&Intent { repeatable: true, ..blind }, None).ruling, Ruling::SafeToRetry);
        for kind in [Kind::Llm, Kind::Propose, Kind::Answer] {
            assert_eq!(judge(&Intent { kind, ..blind }, None).ruling, Ruling::SafeToRetry);
        }
    }

    #[test]
    fn recorded_steps_are_judged_in_the_reference_order() {
        let text = |text: &str| Some(text.to_owned());
        let base = RecordedStep {
            step_id: "act_001".into(),
            pre_hash: text("pre"),
            expected_post_hash: text("post"),
            ..RecordedStep::default()
        };
        let began =
            RecordedStep { status: text("executing"), observed_pre_hash: text("pre"), ..base.clone() };
        let cases = [
            (RecordedStep { post_hash: text("x"), ..began.clone() }, None, None, Ruling::AlreadyDone),
            (began.clone(), None, Some("post"), Ruling::AlreadyDone),
            (RecordedStep { status: text("needs_review"), ..base.clone() }, None, None, Ruling::ManualReview),
            (base.clone(), None, None, Ruling::SafeToRetry),
            (RecordedStep { status: text("failed"), ..base.clone() }, None, None, Ruling::SafeToRetry),
            (RecordedStep { status: text("executing"), ..base }, None, None, Ruling::ManualReview),
            (began.clone(), Some("pre"), None, Ruling::SafeToRetry),
            (began, Some("other"), Some("other"), Ruling::ManualReview),
        ];
        for (step, pre, post, ruling) in cases {
            assert_eq!(judge_recorded(&step, pre, post).ruling, ruling, "{step:?}");
        }
    }
}
