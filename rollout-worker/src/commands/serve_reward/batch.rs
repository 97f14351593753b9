//! Makes a batch of the messages of a call.

use proto::ImageHeader;
use proto::score_request::Part;
use rewards::{PromptRecord, RgbImage};
use serde_json::Value;

use super::hosted::ImageBatch;

/// Most images of a batch.
const MOST_IMAGES: u32 = 4096;
/// Most bytes of a batch: pixels, prompts and metadata.
const MOST_BYTES: u64 = 1 << 30;

/// Most bytes that are set aside for pixels that are only announced.
const TRUSTED_BYTES: u64 = 1 << 20;

/// Most bytes of the metadata of all images, which take a multiple of that once they are read.
const MOST_METADATA_BYTES: u64 = 16 << 20;

/// Messages that make no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BatchError {
    #[error("a batch has at most {MOST_IMAGES} images, not {0}; cut it")]
    TooMany(u32),
    #[error("a batch has at most {MOST_BYTES} bytes; cut it")]
    TooLarge,
    #[error("the metadata of a batch has at most {MOST_METADATA_BYTES} bytes; cut it")]
    TooMuchMetadata,
    #[error("message {0} of the call has no known part")]
    NoPart(usize),
    #[error("the first message of a call, and only it, is its `batch`")]
    SecondBatch,
    #[error("pixels before the first image")]
    NoImage,
    #[error("a piece of image {0} has no pixels")]
    NoPixels(u64),
    #[error("image {id} is {width} x {height}; it needs at least one pixel")]
    Empty { id: u64, width: u32, height: u32 },
    #[error("image {id} of {width} x {height} has {got} bytes, not {needed}")]
    Pixels { id: u64, width: u32, height: u32, got: u64, needed: u64 },
    #[error("image {0} is announced twice")]
    Twice(u64),
    #[error("the metadata of image {id} is no JSON: {problem}")]
    Metadata { id: u64, problem: String },
    #[error("{announced} images were announced, and {got} sent")]
    Count { announced: u32, got: usize },
}

/// A batch of which some messages have come.
pub(super) struct Assembly {
    n_announced: u32,
    n_messages: usize,
    n_bytes: u64,
    n_metadata_bytes: u64,
    batch: ImageBatch,
}

impl Assembly {
    /// A batch of so many images, none of which has come.
    ///
    /// # Errors
    /// If they are too many.
    pub(super) fn new(n_images: u32) -> Result<Self, BatchError> {
        if n_images > MOST_IMAGES {
            return Err(BatchError::TooMany(n_images));
        }
        let batch = ImageBatch { ids: Vec::new(), images: Vec::new(), prompts: Vec::new() };
        Ok(Self { n_announced: n_images, n_messages: 1, n_bytes: 0, n_metadata_bytes: 0, batch })
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// If it does not follow from those before it.
    pub(super) fn add(&mut self, part: Option<Part>) -> Result<(), BatchError> {
        self.n_messages += 1;
        match part {
            None => Err(BatchError::NoPart(self.n_messages)),
            Some(Part::Batch(_)) => Err(BatchError::SecondBatch),
            Some(Part::Image(header)) => self.add_image(header),
            Some(Part::Pixels(bytes)) => self.add_pixels(&bytes),
        }
    }

    /// The whole batch.
    ///
    /// # Errors
    /// If images or pixels are missing.
    pub(super) fn finish(self) -> Result<ImageBatch, BatchError> {
        self.check_last_image()?;
        let (announced, got) = (self.n_announced, self.batch.images.len());
        if got == announced as usize { Ok(self.batch) } else { Err(BatchError::Count { announced, got }) }
    }

    fn add_image(&mut self, header: ImageHeader) -> Result<(), BatchError> {
        self.check_last_image()?;
        let ImageHeader { id, prompt, metadata, height, width } = header;
        let n_before = self.batch.images.len();
        if n_before >= self.n_announced as usize {
            return Err(BatchError::Count { announced: self.n_announced, got: n_before + 1 });
        }
        if width == 0 || height == 0 {
            return Err(BatchError::Empty { id, width, height });
        }
        if self.batch.ids.contains(&id) {
            return Err(BatchError::Twice(id));
        }
        self.count_bytes(prompt.len() + metadata.len())?;
        self.n_metadata_bytes += metadata.len() as u64;
        if self.n_metadata_bytes > MOST_METADATA_BYTES {
            return Err(BatchError::TooMuchMetadata);
        }
        let n_pixel_bytes = u64::from(width) * u64::from(height) * 3;
        if n_pixel_bytes > MOST_BYTES - self.n_bytes {
            return Err(BatchError::TooLarge);
        }
        let metadata = match metadata.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text)
                .map_err(|error| BatchError::Metadata { id, problem: error.to_string() })?,
        };
        let pixels = Vec::with_capacity(n_pixel_bytes.min(TRUSTED_BYTES) as usize);
        self.batch.ids.push(id);
        self.batch.images.push(RgbImage { width: width as usize, height: height as usize, pixels });
        self.batch.prompts.push(PromptRecord { prompt, metadata });
        Ok(())
    }

    fn add_pixels(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        self.count_bytes(bytes.len())?;
        let image = self.batch.images.last_mut().ok_or(BatchError::NoImage)?;
        if bytes.is_empty() {
            // A stream of nothing would never end.
            return Err(BatchError::NoPixels(self.batch.ids.last().copied().unwrap_or_default()));
        }
        let needed = image.width * image.height * 3;
        if image.pixels.len() + bytes.len() > needed {
            let got = image.pixels.len() + bytes.len();
            return Err(self.wrong_pixels(got));
        }
        image.pixels.extend_from_slice(bytes);
        Ok(())
    }

    fn check_last_image(&self) -> Result<(), BatchError> {
        match self.batch.images.last() {
            Some(image) if image.check().is_err() => Err(self.wrong_pixels(image.pixels.len())),
            _ => Ok(()),
        }
    }

    fn wrong_pixels(&self, got: usize) -> BatchError {
        let last = self.batch.images.last().zip(self.batch.ids.last());
        let (image, &id) = last.expect("asked about an image that there is; else this is a bug");
        let needed = (image.width * image.height * 3) as u64;
        let (width, height) = (image.width as u32, image.height as u32);
        BatchError::Pixels { id, width, height, got: got as u64, needed }
    }

    fn count_bytes(&mut self, n_bytes: usize) -> Result<(), BatchError> {
        self.n_bytes += n_bytes as u64;
        if self.n_bytes > MOST_BYTES { Err(BatchError::TooLarge) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: u64, width: u32, height: u32) -> Option<Part> {
        let (prompt, metadata) = (format!("prompt {id}"), format!("{{\"id\": {id}}}"));
        Some(Part::Image(ImageHeader { id, prompt, metadata, height, width }))
    }

    fn pixels(n_bytes: usize) -> Option<Part> {
        Some(Part::Pixels(vec![7; n_bytes].into()))
    }

    fn batch(n_images: u32, parts: Vec<Option<Part>>) -> Result<ImageBatch, BatchError> {
        let mut assembly = Assembly::new(n_images)?;
        parts.into_iter().try_for_each(|part| assembly.add(part))?;
        assembly.finish()
    }

    #[test]
    fn pieces_make_images() {
        let batch = batch(2, vec![image(9, 2, 1), pixels(6), image(4, 1, 3), pixels(4), pixels(5)]);
        let batch = batch.expect("a whole batch");
        assert_eq!(batch.ids, [9, 4]);
        assert_eq!(batch.images[1], RgbImage { width: 1, height: 3, pixels: vec![7; 9] });
        assert_eq!(batch.prompts[1].prompt, "prompt 4");
        assert_eq!(batch.prompts[1].metadata["id"], 4);
    }

    #[test]
    fn messages_that_make_no_batch_are_told() {
        let mut odd =
            ImageHeader { id: 5, width: 1, height: 1, metadata: "{".to_owned(), ..Default::default() };
        let no_json = Some(Part::Image(odd.clone()));
        odd.metadata = format!("[{}0]", "0,".repeat(8 << 20));
        let much = Some(Part::Image(odd.clone()));
        odd.metadata.clear();
        for (n_images, parts, message) in [
            (5000, vec![], "a batch has at most 4096 images, not 5000; cut it"),
            (1, vec![None], "message 2 of the call has no known part"),
            (1, vec![Some(Part::Batch(proto::Batch::default()))], "the first message of a call, and only it"),
            (1, vec![pixels(3)], "pixels before the first image"),
            (1, vec![image(5, 1, 1), pixels(0)], "a piece of image 5 has no pixels"),
            (1, vec![image(5, 0, 9)], "image 5 is 0 x 9; it needs at least one pixel"),
            (1, vec![image(5, 2, 2), pixels(13)], "image 5 of 2 x 2 has 13 bytes, not 12"),
            (2, vec![image(5, 2, 2), pixels(11), image(6, 1, 1)], "image 5 of 2 x 2 has 11 bytes, not 12"),
            (1, vec![image(5, 2, 2)], "image 5 of 2 x 2 has 0 bytes, not 12"),
            (2, vec![image(5, 1, 1), pixels(3), image(5, 1, 1)], "image 5 is announced twice"),
            (1, vec![image(5, 1, 1), pixels(3), image(6, 1, 1)], "1 images were announced, and 2 sent"),
            (2, vec![image(5, 1, 1), pixels(3)], "2 images were announced, and 1 sent"),
            (1, vec![image(5, 1 << 20, 1 << 20)], "a batch has at most 1073741824 bytes; cut it"),
            (1, vec![image(5, u32::MAX, u32::MAX)], "a batch has at most 1073741824 bytes; cut it"),
            (1, vec![much], "the metadata of a batch has at most 16777216 bytes; cut it"),
            (1, vec![no_json], "the metadata of image 5 is no JSON: EOF"),
        ] {
            let told = batch(n_images, parts).expect_err(message).to_string();
            assert!(told.starts_with(message), "{told}");
        }
        assert!(
            batch(1, vec![Some(Part::Image(odd)), pixels(3)]).expect("good").prompts[0].metadata.is_null()
        );
        assert!(batch(0, vec![]).expect("an empty batch").ids.is_empty());
    }
}
