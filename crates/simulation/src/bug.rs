//! Deliberate bugs of the simulated world, by which the simulator shows that it would notice: none is in the product.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// The learner says `held` and drops every third outcome.
    AcknowledgesWithoutHolding,
    /// An outcome that is pushed twice is added twice.
    CountsDuplicates,
    /// Outcomes are added up as they arrive.
    AddsInOrderOfArrival,
    /// A worker samples with the newest weights that it has, whatever the task says.
    SamplesWithNewestWeights,
    /// Weights are withdrawn as soon as a newer version is there.
    WithdrawsWeightsEarly,
    /// A worker tells that the learner holds a task whose push failed.
    TellsHeldUnheard,
    /// The coordinator takes a worker's word that a task is held for good.
    BelievesWorkersForever,
    /// The coordinator takes calls of an earlier incarnation.
    AdmitsFencedMembers,
    /// The launcher reports an end before the process has ended.
    ReportsEndsEarly,
    /// An outcome that arrives does not wake the training that waits for it.
    LosesWakeUps,
    /// The learner reports what it wants when it begins, and never again.
    ReportsOnce,
    /// Calls have no deadline.
    WaitsForever,
    /// A worker takes weights from another one without comparing them with the learner's manifest.
    TrustsDigestsOfWorkers,
    /// A worker forgets who has failed to give it weights.
    NeverPassesOverSources,
    /// Heartbeats do not tell that work stands still.
    HidesStandstill,
    /// Heartbeats do not tell that a model is being opened and nothing comes of it.
    HidesOpening,
    /// The learner's heartbeats do not tell that its training stands still.
    HidesTraining,
    /// How long a task may stand still is not learnt from tasks.
    NeverLearnsDeadlines,
    /// A worker that finishes a task is granted it again.
    GrantsToItsOwnRunner,
    /// Tasks are granted whether the learner has room for their outcomes or not.
    GrantsWithoutRoom,
    /// A worker that is killed soon does not care.
    IgnoresNotice,
    /// The run ends with the first place that is set aside.
    EndsWithAPlace,
    /// A checkpoint counts as written before its name is on disk.
    AcknowledgesBeforeFlush,
    /// A checkpoint counts as written though the disk was full.
    AcknowledgesFailedWrites,
    /// Files take their names before their bytes are on disk.
    RenamesBeforeFlush,
    /// A checkpoint is loaded whatever its manifest says.
    TrustsTornCheckpoints,
    /// All checkpoints are removed before the next one is written.
    PrunesBeforeWriting,
    /// A learner resumes from the oldest checkpoint.
    ResumesFromOldest,
    /// Rows are not flushed.
    AppendsWithoutFlush,
    /// Rows that a killed process did not get to flush count as written.
    TrustsUnflushedRows,
    /// Likewise names of checkpoints.
    TrustsUnflushedNames,
    /// Checkpoints hold no copies of the evaluations.
    OmitsCopies,
    /// An evaluation is recorded after the checkpoint of the next version.
    RecordsAfterCheckpoint,
    /// A resumed learner takes the iteration of its checkpoint for trained.
    SkipsAnIteration,
    /// A learner that resumes has forgotten the earlier versions that lagging tasks are sampled with.
    ForgetsEarlierVersions,
    /// A finished iteration is wanted for ever.
    NeverForgetsIterations,
    /// A learner does not ask whether it still may before what it has written takes its name.
    RenamesUnasked,
    /// A learner adds rows to a file that the one before it may have open.
    AppendsToOthersFiles,
    /// A learner leaves what the one before it has under temporary names.
    LeavesOthersUnfinished,
    /// A coordinator that takes a run over does not raise the epoch.
    TakesOverWithoutEpoch,
}
