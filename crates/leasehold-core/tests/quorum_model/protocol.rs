//! The protocol as a state machine. All decisions are made by `leasehold_core::quorum`.

use leasehold_core::{
    AcquisitionId, Deadline, FencingToken, Timestamp,
    quorum::{
        AttemptState, Durability, Eligibility, Majority, NodeToken, Readmission, Renewed,
        RoundOutcome, Tally, TokenDecision, TokenVote, Vote, VoteReply, choose_token,
        evaluate_round, may_reacquire, readmission, renewal, validity,
    },
};
use stateright::{Model, Property};

use crate::{
    properties,
    scope::{Bug, Scope},
    state::{Attempt, Link, Mark, NODES, Node, Phase, Raised, State, Voting, Who},
    step::Step,
};

const ALL: Majority = Majority::of(NODES);
/// The current time: after deadlines that have passed (at 1), and before those that have not (at
/// 3).
const NOW: Timestamp = Timestamp::from_nanos(2);

/// The protocol with `A` attempts on three nodes.
pub(crate) struct Protocol<const A: usize> {
    pub(crate) scope: Scope,
}

impl<const A: usize> Model for Protocol<A> {
    type State = State<A>;
    type Action = Step;

    fn init_states(&self) -> Vec<State<A>> {
        vec![State::new(
            self.scope.duplicates,
            self.scope.renewals,
            self.scope.restarts,
        )]
    }

    fn actions(&self, state: &State<A>, steps: &mut Vec<Step>) {
        // No further event can change what the properties examine.
        let settled = |attempt: &Attempt| match attempt.phase {
            Phase::Over => true,
            Phase::Held => !self.scope.clocks,
            _ => false,
        };
        if state.attempts.iter().all(settled) {
            return;
        }
        // An event at one node has the same effect at an identical node, and attempts that have not
        // begun are identical.
        let nodes = (0..NODES).filter(|node| !state.nodes[..*node].contains(&state.nodes[*node]));
        let begun = state
            .attempts
            .iter()
            .take_while(|attempt| attempt.phase != Phase::Idle)
            .count();
        for attempt in 0..A.min(begun + 1) {
            self.steps_of_attempt(state, attempt, steps);
            for node in nodes.clone() {
                self.arrivals(state, attempt, node, steps);
            }
        }
        for node in nodes {
            self.steps_of_node(state, node, steps);
        }
    }

    fn next_state(&self, state: &State<A>, step: Step) -> Option<State<A>> {
        let mut next = *state;
        self.take(&mut next, step).then(|| {
            simplify(&mut next);
            next
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.scope)
    }
}

impl<const A: usize> Protocol<A> {
    fn steps_of_attempt(&self, state: &State<A>, attempt: usize, steps: &mut Vec<Step>) {
        let Attempt {
            phase,
            sent,
            passed,
            ..
        } = state.attempts[attempt];
        let links = state.nodes.map(|node| node.links[attempt]);
        match phase {
            Phase::Idle => steps.push(Step::Start { attempt }),
            Phase::Asking => {
                let answered = mask(links.map(|link| link.granted != 0));
                steps.extend(subsets(answered).map(|nodes| Step::Decide { attempt, nodes }));
            }
            Phase::Writing => {
                let answered = mask(links.map(|link| link.raised != Raised::Unanswered));
                steps.extend(subsets(answered).map(|nodes| Step::Settle { attempt, nodes }));
            }
            Phase::Held if state.renewals > 0 && sent == 1 => steps.push(Step::Renew { attempt }),
            Phase::Held | Phase::Over => {}
        }
        if !matches!(phase, Phase::Idle | Phase::Over) {
            steps.push(Step::Release { attempt });
        }
        // Before the grant and after the end, deadlines only decide whether the attempt can still
        // be granted. An attempt that cannot be is equal to one that releases.
        if self.scope.clocks && passed < sent && (phase == Phase::Held || self.scope.bug.is_some())
        {
            steps.push(Step::Pass { attempt });
        }
    }

    /// The messages between the attempt and this node that may arrive next.
    fn arrivals(&self, state: &State<A>, attempt: usize, node: usize, steps: &mut Vec<Step>) {
        let (
            Attempt {
                phase,
                token,
                earlier,
                sent,
                extended,
                ..
            },
            at,
        ) = (state.attempts[attempt], &state.nodes[node]);
        let link = at.links[attempt];
        if phase == Phase::Idle {
            return;
        }
        let again = link.came;
        // The holder is granted again, as is a reacquisition that meets its own late grant.
        let free = at.holder == 0 || at.holder == who(attempt);
        if free && votes(at) && (!again || state.duplicates > 0) {
            for floor in self.scope.floors {
                steps.push(Step::Grant {
                    attempt,
                    node,
                    floor: *floor,
                    answered: true,
                });
                if again && link.granted != 0 && !link.member {
                    steps.push(Step::Grant {
                        attempt,
                        node,
                        floor: *floor,
                        answered: false,
                    });
                }
            }
        }
        if phase == Phase::Writing && link.granted != 0 && !link.member {
            steps.push(Step::Adopt { attempt, node });
        }
        let ours = at.holder == who(attempt) || self.scope.bug == Some(Bug::NonStrictWriteBack);
        if ours {
            if phase == Phase::Writing && link.raised == Raised::Unanswered {
                steps.push(Step::Raise {
                    attempt,
                    node,
                    token,
                });
            }
            for token in
                (1..16).filter(|token| earlier & (1 << token) != 0 && *token > at.mark.token)
            {
                steps.push(Step::Raise {
                    attempt,
                    node,
                    token,
                });
            }
        }
        // After the attempt has ended, or without clocks, the lock may expire in any case.
        if self.scope.clocks
            && phase == Phase::Held
            && sent == 2
            && link.until < 2
            && at.holder == who(attempt)
        {
            steps.push(Step::Extend { attempt, node });
        }
        if extended && link.until < 2 && free && votes(at) {
            // The floor of a reacquisition is one below the attempt's token. A node's clock may
            // lower it.
            let own = Some(token.saturating_sub(1)).filter(|own| !self.scope.floors.contains(own));
            let floors = self.scope.floors.iter().copied().chain(own);
            steps.extend(floors.map(|floor| Step::Reacquire {
                attempt,
                node,
                floor,
            }));
        }
        // An answer that is in time was counted when it was sent.
        let late = self.scope.bug == Some(Bug::ReacquiredAfterABreak);
        if late && phase == Phase::Held && link.until == 2 && link.known < 2 {
            steps.push(Step::Extended { attempt, node });
        }
    }

    fn steps_of_node(&self, state: &State<A>, node: usize, steps: &mut Vec<Step>) {
        let at = &state.nodes[node];
        if at.holder != 0 {
            let holder = usize::from(at.holder) - 1;
            let passed = state.attempts[holder].passed >= at.links[holder].until;
            // The node cannot distinguish a release from an expiry.
            if self.scope.clocks && state.attempts[holder].releases {
                steps.push(Step::Free { node });
            } else if !self.scope.clocks || passed {
                steps.push(Step::Expire { node });
            }
        }
        if state.restarts > 0 {
            steps.push(Step::Restart { node });
        }
        let early = self.scope.bug == Some(Bug::TokenCopyBeforeGrace);
        let may_copy = if early {
            at.voting == Voting::Grace
        } else {
            at.voting == Voting::Locks
        };
        match at.voting {
            Voting::Full => {}
            Voting::Grace
                if self.expired_at(state, node) || self.scope.bug == Some(Bug::GraceBySetClock) =>
            {
                steps.push(Step::GraceEnds { node });
            }
            Voting::Grace => {}
            Voting::Locks => steps.push(Step::Readmit { node }),
        }
        for from in (0..NODES).filter(|from| may_copy && *from != node) {
            let other = &state.nodes[from];
            if !other.asked && other.voting == Voting::Full {
                steps.push(Step::Copy { node, from });
            }
        }
    }

    /// Returns whether every deadline until which the node was ever locked has passed. The largest
    /// TTL has then passed since its restart.
    fn expired_at(&self, state: &State<A>, node: usize) -> bool {
        let links = state.nodes[node].links;
        links
            .iter()
            .zip(&state.attempts)
            .all(|(link, attempt)| attempt.passed >= link.until)
    }

    /// Takes a step. Returns `false` if the step changes nothing or is impossible.
    fn take(&self, state: &mut State<A>, step: Step) -> bool {
        match step {
            Step::Start { attempt } => {
                let granted = (0..A)
                    .filter(|other| state.attempts[*other].granted)
                    .map(|other| 1 << other)
                    .sum();
                let starting = &mut state.attempts[attempt];
                (starting.phase, starting.sent, starting.after) = (Phase::Asking, 1, granted);
                true
            }
            Step::Grant {
                attempt,
                node,
                floor,
                answered,
            } => {
                state.duplicates -= u8::from(state.nodes[node].links[attempt].came);
                let phase = state.attempts[attempt].phase;
                let valid = phase == Phase::Held && self.is_valid(state, attempt);
                let at = &mut state.nodes[node];
                let mark = self.grant(at, attempt, floor);
                let link = &mut at.links[attempt];
                link.came = true;
                // The TTL starts now, so that a deadline that was sent earlier is not extended.
                link.until = match self.scope.bug {
                    Some(Bug::DuplicateShortens) => 1,
                    _ => link.until.max(1),
                };
                match phase {
                    Phase::Asking | Phase::Writing if answered && !link.member => {
                        (link.granted, link.fenced) = (mark.token, at.voting == Voting::Full);
                    }
                    // The grant is adopted at once. If it came later or never, the attempt's
                    // deadline could only be earlier.
                    Phase::Held if self.scope.clocks && valid && !link.member => {
                        (link.member, link.known) = (true, 1);
                    }
                    _ => {}
                }
                true
            }
            Step::Decide { attempt, nodes } => self.decide(state, attempt, nodes),
            Step::Adopt { attempt, node } => {
                let link = &mut state.nodes[node].links[attempt];
                (link.member, link.known) = (true, 1);
                true
            }
            Step::Raise {
                attempt,
                node,
                token,
            } => self.raise(state, attempt, node, token),
            Step::Settle { attempt, nodes } => self.settle(state, attempt, nodes),
            Step::Renew { attempt } => {
                let renewing = &mut state.attempts[attempt];
                renewing.sent = 2;
                // Without clocks, answers to renewals are not modelled, so that nodes may be
                // acquired again from now on.
                renewing.extended =
                    !self.scope.clocks || self.scope.bug == Some(Bug::ReacquiredAfterABreak);
                state.renewals -= 1;
                true
            }
            Step::Extend { attempt, node } | Step::Reacquire { attempt, node, .. } => {
                let held = state.attempts[attempt].phase == Phase::Held;
                let valid = self.scope.clocks && held && self.is_valid(state, attempt);
                let at = &mut state.nodes[node];
                if let Step::Reacquire { floor, .. } = step {
                    self.grant(at, attempt, floor);
                }
                let link = &mut at.links[attempt];
                link.until = 2;
                // As with an adopted grant, counting the answer at once gives the latest deadline.
                if valid {
                    (link.member, link.known) = (true, 2);
                    self.judge_renewal(state, attempt);
                }
                true
            }
            Step::Extended { attempt, node } => {
                let link = &mut state.nodes[node].links[attempt];
                (link.member, link.known) = (true, 2);
                true
            }
            Step::Release { attempt } => {
                self.release(state, attempt);
                true
            }
            Step::Free { node } | Step::Expire { node } => {
                state.nodes[node].holder = 0;
                true
            }
            Step::Pass { attempt } => {
                state.attempts[attempt].passed += 1;
                let held = state.attempts[attempt].phase == Phase::Held;
                if self.scope.bug.is_none() && held && !self.is_valid(state, attempt) {
                    // The loss is final.
                    self.release(state, attempt);
                }
                true
            }
            Step::Restart { node } => {
                state.restarts -= 1;
                let at = &mut state.nodes[node];
                (at.holder, at.mark) = (0, Mark::default());
                at.voting = if self.scope.bug == Some(Bug::VotesAfterDataLoss) {
                    Voting::Full
                } else {
                    Voting::Grace
                };
                true
            }
            Step::GraceEnds { node } => {
                state.nodes[node].voting = match self.scope.bug {
                    Some(Bug::NoTokenCopy) => Voting::Full,
                    Some(Bug::TokenCopyBeforeGrace) if self.has_copied_tokens(state, node) => {
                        Voting::Full
                    }
                    _ => Voting::Locks,
                };
                true
            }
            Step::Copy { node, from } => {
                let mut mark = state.nodes[from].mark;
                if self.scope.bug != Some(Bug::OwnerCopied) {
                    mark.owner = 0;
                }
                state.nodes[from].asked = true;
                let at = &mut state.nodes[node];
                at.copied = at.copied.max(mark);
                true
            }
            Step::Readmit { node } => {
                let has_copied_tokens = self.has_copied_tokens(state, node);
                state.nodes[node].voting = Voting::Full;
                has_copied_tokens
            }
        }
    }

    fn grant(&self, node: &mut Node<A>, attempt: usize, floor: u8) -> Mark {
        let granted = NodeToken::granted(fence(node.mark), token(floor), owner(attempt));
        (node.mark, node.holder) = (mark(granted), who(attempt));
        node.mark
    }

    fn decide(&self, state: &mut State<A>, attempt: usize, nodes: u8) -> bool {
        let majority = match self.scope.bug {
            Some(Bug::MajorityOfAnswered) => Majority::of(nodes.count_ones() as usize),
            _ => ALL,
        };
        let votes = (0..majority.configured()).map(|place| match majority == ALL {
            true if nodes & (1 << place) == 0 => Vote::Pending,
            _ => Vote::Granted,
        });
        if Tally::of(majority, votes).state() != AttemptState::Won {
            return false;
        }
        let counted = || (0..NODES).filter(move |node| nodes & (1 << node) != 0);
        for node in counted() {
            let link = &mut state.nodes[node].links[attempt];
            (link.member, link.known) = (true, 1);
        }
        if !self.is_valid_by(state, attempt, majority) {
            return false;
        }
        let tokens = counted()
            .map(|node| state.nodes[node].links[attempt])
            .filter(|link| link.fenced);
        let largest = tokens.clone().map(|link| link.granted).max();
        match choose_token(tokens.map(|link| token(link.granted)), majority) {
            Some(TokenDecision::Agreed(token)) => self.granted(state, attempt, number(token)),
            Some(TokenDecision::WriteBack(token)) if self.scope.bug == Some(Bug::NoWriteBack) => {
                self.granted(state, attempt, number(token));
            }
            Some(TokenDecision::WriteBack(token)) => self.write_back(state, attempt, number(token)),
            None => match largest {
                // Some of the nodes could not vote on tokens, but may have been readmitted by now.
                Some(token) => self.write_back(state, attempt, token),
                // The lock is granted without a promise about its token.
                None => self.granted(state, attempt, 0),
            },
        }
        true
    }

    fn write_back(&self, state: &mut State<A>, attempt: usize, token: u8) {
        let attempt = &mut state.attempts[attempt];
        (attempt.phase, attempt.token) = (Phase::Writing, token);
    }

    fn settle(&self, state: &mut State<A>, attempt: usize, nodes: u8) -> bool {
        if !self.is_valid(state, attempt) {
            return false;
        }
        let asked = state.attempts[attempt].token;
        let answers = (0..NODES).map(|node| {
            let link = state.nodes[node].links[attempt];
            match link.raised {
                _ if !link.member => VoteReply::Gone,
                _ if link.fenced && link.granted == asked => VoteReply::Accepted,
                Raised::Accepted if nodes & (1 << node) != 0 => VoteReply::Accepted,
                Raised::Higher(higher) if nodes & (1 << node) != 0 => {
                    VoteReply::Higher(token(higher))
                }
                _ => VoteReply::Gone,
            }
        });
        match evaluate_round(token(asked), answers, ALL) {
            RoundOutcome::Agreed => self.granted(state, attempt, asked),
            RoundOutcome::Retry(next) => {
                let writing = &mut state.attempts[attempt];
                writing.earlier |= 1 << asked;
                writing.token = number(next);
                for node in &mut state.nodes {
                    node.links[attempt].raised = Raised::Unanswered;
                }
            }
            // The attempt releases, which it may do at any time.
            RoundOutcome::Pending | RoundOutcome::Lost => return false,
        }
        true
    }

    fn raise(&self, state: &mut State<A>, attempt: usize, node: usize, raised: u8) -> bool {
        let writing = state.attempts[attempt].phase == Phase::Writing
            && state.attempts[attempt].token == raised;
        let at = &mut state.nodes[node];
        if at.voting != Voting::Full {
            return false;
        }
        let asked = NodeToken {
            token: token(raised),
            owner: owner(attempt),
        };
        let holder = (at.holder != 0).then(|| owner(usize::from(at.holder) - 1));
        let mut vote = NodeToken::accepts(fence(at.mark), holder, asked);
        let equal_or_smaller = fence(at.mark).is_none_or(|stored| stored.token <= asked.token);
        match self.scope.bug {
            Some(Bug::NonStrictWriteBack) if equal_or_smaller => vote = TokenVote::Accepted,
            Some(Bug::NonStrictOwnWriteBack) if equal_or_smaller && holder == Some(asked.owner) => {
                vote = TokenVote::Accepted;
            }
            _ => {}
        }
        let before = *at;
        let answer = match VoteReply::from(vote) {
            VoteReply::Accepted => {
                at.mark = mark(asked);
                Raised::Accepted
            }
            VoteReply::Higher(higher) => Raised::Higher(number(higher)),
            // For the attempt, this is the same as no answer.
            VoteReply::Gone | VoteReply::Pending => Raised::Unanswered,
        };
        if writing {
            at.links[attempt].raised = answer;
        }
        *at != before
    }

    /// Evaluates the answers to the holder's renewal.
    fn judge_renewal(&self, state: &mut State<A>, attempt: usize) {
        let votes = state.nodes.map(|node| match node.links[attempt] {
            Link { member: false, .. } => Vote::Refused,
            Link { known: 2, .. } => Vote::Granted,
            _ => Vote::Pending,
        });
        match renewal(&Tally::of(ALL, votes)) {
            Renewed::Extended => state.attempts[attempt].extended = true,
            Renewed::Lost => self.release(state, attempt),
            Renewed::Pending | Renewed::Unchanged => {}
        }
    }

    fn granted(&self, state: &mut State<A>, attempt: usize, token: u8) {
        let winner = &mut state.attempts[attempt];
        if winner.phase == Phase::Writing {
            winner.earlier |= 1 << token;
        }
        (winner.phase, winner.token, winner.granted) = (Phase::Held, token, true);
        let others = state
            .attempts
            .iter_mut()
            .enumerate()
            .filter(|(other, _)| *other != attempt);
        others
            .filter(|(_, other)| other.phase == Phase::Held)
            .for_each(|(_, other)| other.overtaken = self.scope.clocks);
        for node in &mut state.nodes {
            let link = &mut node.links[attempt];
            // Answers that have arrived are adopted at once. From here on, only the attempt's own
            // token matters.
            let member = self.scope.clocks && (link.member || link.granted != 0);
            *link = Link {
                came: link.came,
                until: link.until,
                member,
                known: u8::from(member),
                ..Link::default()
            };
        }
    }

    fn release(&self, state: &mut State<A>, attempt: usize) {
        let over = &mut state.attempts[attempt];
        over.releases = over.granted || self.scope.bug != Some(Bug::NoReleaseOfPartialWins);
        if over.phase == Phase::Writing {
            over.earlier |= 1 << over.token;
        }
        if !over.granted {
            over.token = 0;
        }
        (over.phase, over.overtaken) = (Phase::Over, false);
        if over.releases {
            // An attempt without pending deadlines can only let the grace periods of nodes end
            // earlier.
            over.passed = over.sent;
        }
        for node in &mut state.nodes {
            let link = &mut node.links[attempt];
            *link = Link {
                came: link.came,
                until: link.until,
                ..Link::default()
            };
        }
    }

    /// Returns whether the attempt may consider a majority of the nodes locked for it.
    fn is_valid(&self, state: &State<A>, attempt: usize) -> bool {
        let majority = match self.scope.bug {
            Some(Bug::MajorityOfAnswered) => Majority::of(
                state
                    .nodes
                    .iter()
                    .filter(|node| node.links[attempt].member)
                    .count()
                    .max(1),
            ),
            _ => ALL,
        };
        self.is_valid_by(state, attempt, majority)
    }

    fn is_valid_by(&self, state: &State<A>, attempt: usize, majority: Majority) -> bool {
        if !self.scope.clocks {
            return true;
        }
        deadline(state, attempt, majority).is_some_and(|until| {
            self.scope.bug == Some(Bug::DeadlineFromAnswer) || may_reacquire(until, NOW)
        })
    }

    /// Returns whether the copying is complete. If so, the node has the token.
    fn has_copied_tokens(&self, state: &mut State<A>, node: usize) -> bool {
        let copied = state.nodes[node].copied;
        let asked = state.nodes.iter().filter(|other| other.asked).count();
        let Readmission::Copy(_) =
            readmission(std::iter::repeat_n(token(copied.token), asked), ALL)
        else {
            return false;
        };
        let at = &mut state.nodes[node];
        if at.mark.token <= copied.token {
            at.mark = copied;
        }
        at.copied = Mark::default();
        state.nodes.iter_mut().for_each(|node| node.asked = false);
        true
    }
}

/// Removes the parts of ended attempts that can make no difference any more, so that more states
/// are equal.
fn simplify<const A: usize>(state: &mut State<A>) {
    let (duplicates, restarts) = (state.duplicates, state.restarts);
    let least = state
        .nodes
        .iter()
        .map(|node| node.mark.token)
        .min()
        .unwrap_or(0);
    for (index, attempt) in state.attempts.iter_mut().enumerate() {
        // All its deadlines have passed then.
        if attempt.phase != Phase::Over || !attempt.releases {
            continue;
        }
        let reacquires = attempt.extended;
        let mut may_hold = duplicates > 0;
        for node in &mut state.nodes {
            let link = &mut node.links[index];
            // Only whether a request to acquire the node again may still arrive.
            link.until = if reacquires && link.until == 2 { 2 } else { 0 };
            may_hold |= node.holder == who(index) || !link.came || reacquires && link.until == 0;
        }
        // A write-back of a token that every node exceeds, or that no node can be locked for, is
        // rejected. A restart lowers a token.
        if !may_hold {
            attempt.earlier = 0;
        } else if restarts == 0 {
            attempt.earlier &= (!0_u16).checked_shl(u32::from(least) + 1).unwrap_or(0);
        }
        if !attempt.granted || attempt.token == 0 {
            attempt.after = 0;
        }
    }
}

/// Returns the deadline until which the attempt's nodes are locked for it, as far as it knows.
pub(crate) fn deadline<const A: usize>(
    state: &State<A>,
    attempt: usize,
    majority: Majority,
) -> Option<Deadline> {
    let Attempt {
        passed, extended, ..
    } = state.attempts[attempt];
    // Renewals of single nodes do not count before the majority has extended the lease.
    let counts = 1 + u8::from(extended);
    let members = state
        .nodes
        .iter()
        .map(|node| node.links[attempt])
        .filter(|link| link.member);
    let deadlines = members.map(|link| {
        Deadline::at(Timestamp::from_nanos(if link.known.min(counts) > passed {
            3
        } else {
            1
        }))
    });
    validity(deadlines, majority)
}

/// Returns whether the attempt was granted the lock and considers it held.
pub(crate) fn considers_held<const A: usize>(
    state: &State<A>,
    attempt: usize,
    majority: Majority,
) -> bool {
    state.attempts[attempt].phase == Phase::Held
        && deadline(state, attempt, majority).is_some_and(|until| !until.is_past(NOW))
}

/// Returns whether a node's grants count. Requests to a node that may not vote are not modelled,
/// because they change nothing.
fn votes<const A: usize>(node: &Node<A>) -> bool {
    let (durability, watched_for) = match node.voting {
        Voting::Full => (Durability::Confirmed, 0),
        Voting::Grace => (Durability::Unknown, 0),
        Voting::Locks => (Durability::Unknown, 1),
    };
    let nanos = std::time::Duration::from_nanos;
    Eligibility {
        durability,
        watched_for: nanos(watched_for),
    }
    .vote_rights(nanos(1))
    .lock
}

fn mask(of: [bool; NODES]) -> u8 {
    of.into_iter()
        .enumerate()
        .map(|(node, is)| u8::from(is) << node)
        .sum()
}

fn subsets(of: u8) -> impl Iterator<Item = u8> {
    (1..1 << NODES).filter(move |nodes| nodes & !of == 0)
}

fn who(attempt: usize) -> Who {
    attempt as Who + 1
}

fn owner(attempt: usize) -> AcquisitionId {
    AcquisitionId::from(attempt as u128 + 1)
}

fn token(number: u8) -> FencingToken {
    FencingToken::new(number.into())
}

fn number(token: FencingToken) -> u8 {
    token.get().try_into().expect("tokens of a model are small")
}

fn fence(mark: Mark) -> Option<NodeToken> {
    (mark.token != 0).then(|| NodeToken {
        token: token(mark.token),
        owner: AcquisitionId::from(u128::from(mark.owner)),
    })
}

fn mark(fence: NodeToken) -> Mark {
    Mark {
        token: number(fence.token),
        owner: fence.owner.as_u128() as u8,
    }
}
