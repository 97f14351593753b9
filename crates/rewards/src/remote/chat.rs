//! Judges that answer in words: chat completions as OpenAI's API has them, and vLLM, SGLang and others after it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use regex::Regex;
use scenes::RgbImage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::batch::{Scorer, check_images, png_base64};
use super::error::RemoteError;
use super::exchange::{Exchange, quoted};
use super::http::HttpClient;
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::image_resampling::resize_bicubic;
use crate::reward::{PromptRecord, Score, check_finite};

/// What is asked of the judge, and how its answer is read.
pub(super) struct Chat {
    pub(super) name: &'static str,
    pub(super) client: HttpClient,
    /// Name of the model on the server.
    pub(super) model: String,
    /// The question, with [`PROMPT`] where the prompt goes.
    pub(super) question: String,
    /// Finds the score in the answer, as its only group.
    pub(super) pattern: Regex,
    /// What the number found is divided by.
    pub(super) scale: f32,
    /// How many questions are under way at once.
    pub(super) max_concurrent: usize,
    /// Side of the square that images are resized to; none to send them as they are.
    pub(super) image_size: Option<usize>,
    pub(super) unfinished: Unfinished,
}

/// What stands for the prompt in a question.
pub(super) const PROMPT: &str = "{prompt}";

/// Attempts for one question before its batch has failed for now.
const ATTEMPTS: u32 = 5;
/// Pauses between them: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

impl Chat {
    pub(super) fn scorer(&self) -> Scorer<'_> {
        Scorer { name: self.name, url: &self.client.connection().url, unfinished: &self.unfinished }
    }

    /// Asks about every image by itself. What was answered is not asked again when the same images come again after a
    /// failure.
    ///
    /// # Errors
    /// If the lists differ in length, an image is empty or broken, or one is not answered with a finite score; the
    /// questions that were not asked yet are then not asked.
    pub(super) fn score(
        &self,
        images: &[RgbImage],
        prompts: &[PromptRecord],
    ) -> Result<Vec<Score>, RewardError> {
        check_images(self.name, images, prompts)?;
        let mut scores = self.unfinished.take(images, prompts);
        let open: Vec<usize> = (0..images.len()).filter(|&index| scores[index].is_none()).collect();
        let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let answered = Mutex::new(Vec::new());
        let ask_on = || -> Result<(), RewardError> {
            while !has_failed.load(Ordering::Relaxed) {
                let Some(&index) = open.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let score = self.ask(index, &images[index], &prompts[index], &has_failed);
                let score = score.inspect_err(|_| has_failed.store(true, Ordering::Relaxed))?;
                answered.lock().unwrap_or_else(PoisonError::into_inner).push((index, score));
            }
            Ok(())
        };
        let outcome = std::thread::scope(|scope| {
            let n_threads = self.max_concurrent.min(open.len());
            let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(ask_on)).collect();
            let outcomes = threads.into_iter().map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            outcomes.collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()
        });
        for (index, score) in answered.into_inner().unwrap_or_else(PoisonError::into_inner) {
            scores[index] = Some(score);
        }
        if let Err(error) = outcome {
            self.unfinished.keep(images, prompts, scores);
            return Err(error);
        }
        let scores: Option<Vec<Score>> = scores.into_iter().collect();
        Ok(scores.expect("every question was answered; else this is a bug"))
    }

    fn ask(
        &self,
        index: usize,
        image: &RgbImage,
        record: &PromptRecord,
        has_failed: &AtomicBool,
    ) -> Result<Score, RewardError> {
        let file = match self.image_size {
            Some(size) => png_base64(index, &resize_bicubic(image, size, size))?,
            None => png_base64(index, image)?,
        };
        let request = self.request(&file, &record.prompt);
        let answer = self.answer_in_the_end(&request, has_failed);
        let score = answer.and_then(|answer| self.read_score(index, &answer));
        let score = Score::from(score.map_err(|problem| self.scorer().error(problem))?);
        check_finite(self.name, index, &score)?;
        Ok(score)
    }

    /// Asks a few times where the server says no for the moment, as one with a limit of requests does of some among many;
    /// a server that is away is the caller's to wait for.
    fn answer_in_the_end(&self, request: &Value, has_failed: &AtomicBool) -> Result<String, RemoteError> {
        let mut backoff = service::backoff(PAUSES.0, PAUSES.1);
        for _ in 1..ATTEMPTS {
            match self.answer(request) {
                Err(error) if !has_failed.load(Ordering::Relaxed) => match error.soon() {
                    Some(pause) => std::thread::sleep(pause.clamp(backoff.next_pause(), PAUSES.1)),
                    None => return Err(error),
                },
                outcome => return outcome,
            }
        }
        self.answer(request)
    }

    fn request(&self, png_base64: &str, prompt: &str) -> Value {
        let image =
            json!({"type": "image_url", "image_url": {"url": format!("data:image;base64,{png_base64}")}});
        let text = json!({"type": "text", "text": self.question.replace(PROMPT, prompt)});
        let messages = json!([{"role": "user", "content": [image, text]}]);
        json!({"model": self.model, "messages": messages, "temperature": 0})
    }

    fn answer(&self, request: &Value) -> Result<String, RemoteError> {
        let body = request.to_string();
        answer_in(self.client.post("/chat/completions", "application/json", body.as_bytes())?)
    }

    /// The score in what the server replied about an image.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn score_in(&self, exchange: Exchange) -> Result<f32, RemoteError> {
        self.read_score(0, &answer_in(exchange)?)
    }

    fn read_score(&self, index: usize, answer: &str) -> Result<f32, RemoteError> {
        let found = self.pattern.captures(answer).and_then(|captures| captures.get(1));
        let number: Option<f32> = found.and_then(|number| number.as_str().parse().ok());
        match number {
            Some(number) => Ok(number / self.scale),
            None => {
                let (answer, pattern) = (quoted(answer.as_bytes()), self.pattern.to_string());
                Err(RemoteError::NoScore { index, answer, pattern })
            }
        }
    }
}

/// What the judge said.
fn answer_in(exchange: Exchange) -> Result<String, RemoteError> {
    let (completion, exchange) = exchange.json::<Completion>()?;
    let answer = completion.choices.into_iter().next().and_then(|choice| choice.message.content);
    answer.ok_or_else(|| exchange.wrong("the reply has no `choices[0].message.content`".to_owned()))
}
