//! A user of a service: asks it every 50 ms, whatever became of the question before, and remembers what came of each.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{sync::Semaphore, time::timeout};

use crate::bed::probe::clock;

const ASK_EVERY: Duration = Duration::from_millis(50);
/// What a person waits for a page. A question that the cluster keeps until the service is back may take so long.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Questions under way at one time: so many are asked within [`PATIENCE`], and a few more.
const UNDER_WAY_MAX: usize = 700;

/// Asks from a thread of its own, so that what a test does meanwhile delays nothing.
#[derive(Debug)]
pub struct Poller {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Nanoseconds, of [`clock`].
    pub at: u64,
    pub answered: u64,
    /// Who answered, or why nobody did.
    pub answer: Result<String, String>,
}

impl Poller {
    /// `client` is called once, on the thread and runtime of the poller, and makes what asks.
    pub fn start<Client, Ask, Answer>(client: Client) -> Result<Self>
    where
        Client: FnOnce() -> Ask + Send + 'static,
        Ask: Fn() -> Answer + 'static,
        Answer: Future<Output = Result<String>> + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stopped, record) = (Arc::clone(&stop), Arc::clone(&asked));
        let thread = std::thread::Builder::new().name("poller".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, poll(client, stopped, record));
            Ok(())
        })?;
        Ok(Self { stop, asked, thread: Some(thread) })
    }

    /// What came of the questions that were answered by now.
    pub fn so_far(&self) -> Polls {
        Polls { asked: self.asked.lock().expect("no poller panics").clone() }
    }

    /// Asks no more, waits for what is under way, and tells what came of all.
    pub fn finish(mut self) -> Result<Polls> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a poller ends once")?;
        thread.join().map_err(|_| anyhow::anyhow!("a poller panicked"))??;
        let polls = self.so_far();
        ensure!(!polls.asked.is_empty(), "nothing was asked");
        Ok(polls)
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn poll<Client, Ask, Answer>(client: Client, stop: Arc<AtomicBool>, record: Arc<Mutex<Vec<Asked>>>)
where
    Client: FnOnce() -> Ask,
    Ask: Fn() -> Answer,
    Answer: Future<Output = Result<String>> + 'static,
{
    let ask = client();
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut ticks = tokio::time::interval(ASK_EVERY);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        let (answer, record) = (ask(), Arc::clone(&record));
        tokio::task::spawn_local(async move {
            let at = clock();
            let answer = match timeout(PATIENCE, answer).await {
                Ok(answer) => answer.map_err(|error| format!("{error:#}")),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            record.lock().expect("no poller panics").push(Asked { at, answered: clock(), answer });
            drop(permit);
        });
    }
    // All that was asked has an end by then.
    let _ = room.acquire_many(u32::try_from(UNDER_WAY_MAX).unwrap_or(u32::MAX)).await;
}

/// What came of all questions.
#[derive(Clone, Debug)]
pub struct Polls {
    pub asked: Vec<Asked>,
}

impl Polls {
    pub fn failed(&self) -> usize {
        self.asked.iter().filter(|asked| asked.answer.is_err()).count()
    }

    /// The longest that anybody waited for a good answer.
    pub fn slowest(&self) -> Duration {
        let answered = self.asked.iter().filter(|asked| asked.answer.is_ok());
        Duration::from_nanos(answered.map(|asked| asked.answered - asked.at).max().unwrap_or_default())
    }

    /// From `event` to the first good answer that came later, to a question or of an instance that `counts`: what somebody who
    /// opens the service in that moment waits. `None` where none came.
    pub fn back_after(&self, event: u64, counts: impl Fn(&str) -> bool) -> Option<Duration> {
        let later = self.asked.iter().filter(|asked| asked.answered > event);
        let good = later.filter(|asked| asked.answer.as_ref().is_ok_and(|who| counts(who)));
        good.map(|asked| asked.answered).min().map(|at| Duration::from_nanos(at - event))
    }

    /// The longest time between two good answers, one after the other.
    pub fn gap(&self) -> Duration {
        let good = self.asked.iter().filter(|asked| asked.answer.is_ok());
        let mut times: Vec<u64> = good.map(|asked| asked.answered).collect();
        times.sort_unstable();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
        longest.map_or(Duration::MAX, Duration::from_nanos)
    }
}

impl fmt::Display for Polls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked, failed) = (self.asked.len(), self.failed());
        write!(f, "{asked} questions, {failed} failed, slowest {:?}, longest gap {:?}", self.slowest(), self.gap())?;
        let mut reasons: Vec<&String> = self.asked.iter().filter_map(|asked| asked.answer.as_ref().err()).collect();
        reasons.dedup();
        reasons.iter().take(5).try_for_each(|reason| write!(f, "\n  {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn asked(at: u64, took: u64, answer: Result<&str, &str>) -> Asked {
        let answer = answer.map(ToOwned::to_owned).map_err(ToOwned::to_owned);
        Asked { at: at * MS, answered: (at + took) * MS, answer }
    }

    #[test]
    fn a_gap_is_between_good_answers() {
        let polls = Polls {
            asked: vec![
                asked(0, 1, Ok("a")),
                asked(50, 2, Err("refused")),
                asked(100, 400, Ok("b")),
                asked(150, 1, Err("refused")),
            ],
        };
        assert_eq!(polls.failed(), 2);
        assert_eq!(polls.gap(), Duration::from_millis(499));
        assert_eq!(polls.slowest(), Duration::from_millis(400));
        assert_eq!(polls.back_after(40 * MS, |_| true), Some(Duration::from_millis(460)));
        assert_eq!(polls.back_after(40 * MS, |who| who == "a"), None);
    }

    #[test]
    fn every_question_is_asked_in_time_though_others_wait() {
        let poller = Poller::start(|| {
            || async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok("slow".to_owned())
            }
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(700));
        let polls = poller.finish().unwrap();
        assert!(polls.asked.len() >= 8, "{polls}");
        assert_eq!(polls.failed(), 0, "{polls}");
    }
}
