//! The Tesseract program as a reader of images.
//!
//! Three things make it read pictures rather than scans (numbers in docs/measurements.md):
//!
//! 1. **A threshold for every place** (Sauvola's): one for the whole picture loses words on an uneven ground.
//! 2. **The picture and its negative.** That threshold finds dark strokes on a lighter ground and not the reverse. Both
//!    readings are returned; which is the better one is for the caller to say.
//! 3. **Small pictures at twice their size**, each pixel four times: Tesseract's networks want letters of about 30 pixels.
//!
//! One process reads many pages, so that its start is paid for once; its pages do not influence each other.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use scenes::RgbImage;

use super::OcrOptions;

/// Images in one process; bounds what lies in the temporary folder.
const IMAGES_AT_ONCE: usize = 32;
/// Pictures with a shorter side are doubled, in pixels.
const LARGE_ENOUGH: usize = 768;
const OLDEST_VERSION: u32 = 5;
/// Sauvola's, of those that version 5 has.
const THRESHOLDING: &str = "thresholding_method=2";
/// Time between two looks at a living process.
const POLL: Duration = Duration::from_millis(2);
/// What is told of an error message, in bytes.
const TOLD_BYTES: usize = 200;
const APT: &str = "apt-get install tesseract-ocr";

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum OcrError {
    /// There is no such program.
    #[error("there is no program `{}`; install it ({APT}), or name it by the option `program`", program.display())]
    Missing {
        /// As it was asked for.
        program: PathBuf,
    },
    /// The program cannot be started, or its files not written and read.
    #[error("running `{}`: {problem}", program.display())]
    System {
        /// As it was asked for.
        program: PathBuf,
        /// Why not.
        problem: io::Error,
    },
    /// It is too old, or something else.
    #[error("`{}` is `{found}`; Tesseract {OLDEST_VERSION} or newer is needed", program.display())]
    Version {
        /// As it was asked for.
        program: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// It has not learned the language.
    #[error(
        "Tesseract has no language `{language}`; install it ({APT}-{language}), or choose among {installed}"
    )]
    Language {
        /// As the options name it.
        language: String,
        /// Those that it has.
        installed: String,
    },
    /// It gave up.
    #[error("`{}` ended with {status}: {message}", program.display())]
    Failed {
        /// As it was asked for.
        program: PathBuf,
        /// Exit code or signal.
        status: ExitStatus,
        /// The start of what it said.
        message: String,
    },
    /// It did not end in time, and was killed.
    #[error("`{}` did not end within {seconds} s; raise the option `timeout_seconds`", program.display())]
    Timeout {
        /// As it was asked for.
        program: PathBuf,
        /// The option.
        seconds: f64,
    },
    /// It ended well without having read all.
    #[error("`{}` told of {got} of {pages} pages; is it Tesseract?", program.display())]
    Incomplete {
        /// As it was asked for.
        program: PathBuf,
        /// Pages in its output.
        got: usize,
        /// Pages it was given.
        pages: usize,
    },
}

impl OcrError {
    /// Whether the machine was at fault, which may have a better moment.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::System { .. } | Self::Timeout { .. })
    }
}

/// A program that was found fit.
#[derive(Debug)]
pub(super) struct Tesseract {
    program: PathBuf,
    language: String,
    page_segmentation: u8,
    timeout: Duration,
}

/// A picture as the program gets it: grey, and large enough.
pub(super) struct Page {
    width: usize,
    grey: Vec<u8>,
}

impl Page {
    /// The page of an image.
    pub(super) fn of(image: &RgbImage) -> Self {
        // Luma in the 16-bit weights of ITU-R 601, as Pillow's `convert("L")` has it.
        let luma = |pixel: &[u8]| {
            let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
            ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
        };
        let page = Self { width: image.width, grey: image.pixels.chunks_exact(3).map(luma).collect() };
        if image.width.min(image.height) < LARGE_ENOUGH { page.doubled() } else { page }
    }

    fn doubled(&self) -> Self {
        let double_row = |row: &[u8]| row.iter().flat_map(|value| [*value; 2]).collect::<Vec<u8>>();
        let grey = self.grey.chunks_exact(self.width).flat_map(|row| double_row(row).repeat(2)).collect();
        Self { width: 2 * self.width, grey }
    }

    fn negative(&self) -> Self {
        Self { width: self.width, grey: self.grey.iter().map(|value| !value).collect() }
    }

    /// Writes it as a portable grey map.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        write!(file, "P5\n{} {}\n255\n", self.width, self.grey.len() / self.width)?;
        file.write_all(&self.grey)
    }
}

impl Tesseract {
    /// Finds out whether the program is there, new enough, and knows the language.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn open(options: OcrOptions) -> Result<Self, OcrError> {
        let tesseract = Self {
            program: options.program,
            language: options.language,
            page_segmentation: options.page_segmentation,
            timeout: Duration::from_secs_f64(options.timeout_seconds),
        };
        tesseract.check_version()?;
        tesseract.check_language()?;
        Ok(tesseract)
    }

    /// The texts of every page and of its negative.
    ///
    /// # Errors
    /// If the program cannot be run, fails, or takes too long.
    pub(super) fn read(&self, pages: &[Page]) -> Result<Vec<[String; 2]>, OcrError> {
        let mut readings = Vec::with_capacity(pages.len());
        for pages in pages.chunks(IMAGES_AT_ONCE) {
            let both: Vec<String> = self.read_at_once(pages)?;
            readings.extend(both.as_chunks().0.iter().cloned());
        }
        Ok(readings)
    }

    /// The texts of a few pages, each followed by that of its negative.
    fn read_at_once(&self, pages: &[Page]) -> Result<Vec<String>, OcrError> {
        let folder = self.folder()?;
        let mut list = String::new();
        for (index, page) in pages.iter().enumerate() {
            for (name, page) in [(format!("{index}.pgm"), page), (format!("{index}n.pgm"), &page.negative())]
            {
                page.write(&folder.path().join(&name)).map_err(|problem| self.system(problem))?;
                list.push_str(&format!("{name}\n"));
            }
        }
        fs::write(folder.path().join("pages"), list).map_err(|problem| self.system(problem))?;
        let segmentation = self.page_segmentation.to_string();
        let arguments =
            ["pages", "stdout", "-l", &self.language, "--psm", &segmentation, "-c", THRESHOLDING, "tsv"];
        let words = self.run(folder.path(), &arguments)?;
        let texts = texts(&words, 2 * pages.len());
        let got = texts.iter().flatten().count();
        let incomplete =
            || OcrError::Incomplete { program: self.program.clone(), got, pages: 2 * pages.len() };
        texts.into_iter().collect::<Option<_>>().ok_or_else(incomplete)
    }

    fn check_version(&self) -> Result<(), OcrError> {
        let said = self.run(self.folder()?.path(), &["--version"])?;
        let found = said.lines().next().unwrap_or_default().trim().to_owned();
        let digits = found.strip_prefix("tesseract").map(|rest| rest.trim_start().trim_start_matches('v'));
        let major = digits.and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        match major.is_some_and(|major| major >= OLDEST_VERSION) {
            true => Ok(()),
            false => Err(OcrError::Version { program: self.program.clone(), found: start_of(&found) }),
        }
    }

    fn check_language(&self) -> Result<(), OcrError> {
        let said = self.run(self.folder()?.path(), &["--list-langs"])?;
        // The first line is a heading.
        let installed: Vec<&str> = said.lines().skip(1).map(str::trim).collect();
        match self.language.split('+').find(|language| !installed.contains(language)) {
            None => Ok(()),
            Some(language) => {
                Err(OcrError::Language { language: language.to_owned(), installed: installed.join(", ") })
            }
        }
    }

    /// Runs the program in a folder and returns what it wrote to its standard output.
    fn run(&self, folder: &Path, arguments: &[&str]) -> Result<String, OcrError> {
        let [output, errors] = ["stdout", "stderr"].map(|name| folder.join(name));
        let child =
            self.start(folder, arguments, [&output, &errors]).map_err(|problem| match problem.kind() {
                io::ErrorKind::NotFound => OcrError::Missing { program: self.program.clone() },
                _ => self.system(problem),
            })?;
        let status = self.wait(child)?;
        let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if !status.success() {
            let said = read(&errors).map_err(|problem| self.system(problem))?;
            // It announces every page, which says nothing.
            let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("Page ")).collect();
            let message = start_of(&lines.join("; "));
            return Err(OcrError::Failed { program: self.program.clone(), status, message });
        }
        read(&output).map_err(|problem| self.system(problem))
    }

    fn start(&self, folder: &Path, arguments: &[&str], files: [&Path; 2]) -> io::Result<Child> {
        // A path is meant from here, not from the folder.
        let is_path = self.program.components().count() > 1;
        let program = if is_path { std::path::absolute(&self.program)? } else { self.program.clone() };
        let [output, errors] = files;
        let mut command = Command::new(program);
        service::cuda::without_cuda_half(&mut command)
            .args(arguments)
            .current_dir(folder)
            // Scorers run beside samplers, which have the cores.
            .env("OMP_THREAD_LIMIT", "1")
            .stdin(Stdio::null())
            .stdout(File::create(output)?)
            .stderr(File::create(errors)?)
            .spawn()
    }

    fn wait(&self, mut child: Child) -> Result<ExitStatus, OcrError> {
        let start = Instant::now();
        loop {
            match child.try_wait().map_err(|problem| self.system(problem))? {
                Some(status) => return Ok(status),
                None if start.elapsed() >= self.timeout => {
                    child.kill().and_then(|()| child.wait()).map_err(|problem| self.system(problem))?;
                    let seconds = self.timeout.as_secs_f64();
                    return Err(OcrError::Timeout { program: self.program.clone(), seconds });
                }
                None => std::thread::sleep(POLL),
            }
        }
    }

    fn folder(&self) -> Result<tempfile::TempDir, OcrError> {
        tempfile::Builder::new().prefix("ocr-").tempdir().map_err(|problem| self.system(problem))
    }

    fn system(&self, problem: io::Error) -> OcrError {
        OcrError::System { program: self.program.clone(), problem }
    }
}

/// The words of every page, in the order of reading; none for a page that the table does not tell of.
///
/// Columns are level, page (from 1), block, paragraph, line, word, left, top, width, height, confidence, text; a page has a
/// row of its own, of level 1. Words that the program does not believe itself have a confidence of 0.
fn texts(table: &str, n_pages: usize) -> Vec<Option<String>> {
    let mut texts = vec![None; n_pages];
    for row in table.lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let page = columns.get(1).and_then(|page| page.parse::<usize>().ok()?.checked_sub(1));
        let Some(text) = page.and_then(|page| texts.get_mut(page)) else { continue };
        let text = text.get_or_insert_with(String::new);
        if let ["5", .., confidence, word] = columns.as_slice()
            && confidence.parse::<f64>().is_ok_and(|confidence| confidence > 0.0)
        {
            text.push_str(word);
        }
    }
    texts
}

/// The first bytes of a message, without cutting a letter.
fn start_of(message: &str) -> String {
    message[..message.floor_char_boundary(TOLD_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_joined_by_page_in_the_order_of_the_table() {
        let heading =
            "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext";
        let word = |page: u32, confidence: &str, text: &str| {
            format!("5\t{page}\t1\t1\t1\t1\t0\t0\t9\t9\t{confidence}\t{text}")
        };
        let page = |page: u32| format!("1\t{page}\t0\t0\t0\t0\t0\t0\t9\t9\t-1\t");
        let table = [
            heading.to_owned(),
            page(1),
            word(1, "96.5", "Grand"),
            word(1, "0", "noise"),
            word(1, "12", "Opening"),
            page(2),
            page(4),
            word(4, "50", "é"),
            word(9, "50", "beyond"),
        ];
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts(&table.join("\n"), 4), [some("GrandOpening"), some(""), None, some("é")]);
        assert_eq!(texts("", 1), [None]);
    }

    #[test]
    fn small_pictures_are_doubled_and_large_ones_are_not() {
        let mut image = RgbImage::filled(2, 1, [255, 0, 0]);
        image.pixels[3..].copy_from_slice(&[255; 3]);
        let page = Page::of(&image);
        assert_eq!((page.width, page.grey.as_slice()), (4, &[76, 76, 255, 255, 76, 76, 255, 255][..]));
        assert_eq!(page.negative().grey[..4], [179, 179, 0, 0]);
        assert_eq!(Page::of(&RgbImage::filled(900, 768, [0; 3])).width, 900);
    }

    #[test]
    fn messages_are_cut_between_letters() {
        let message = "é".repeat(150);
        assert_eq!(start_of(&message).len(), 200);
        assert_eq!(start_of(&format!("a{message}")).len(), 199);
        assert_eq!(start_of("short"), "short");
    }
}
