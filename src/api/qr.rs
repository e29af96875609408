//! QR codes as pictures that Telegram takes.

use png::{BitDepth, ColorType, Encoder};
use qrcode::{Color, EcLevel, QrCode};

/// How many pixels a side of a module has: a phone reads it off another phone's screen.
const MODULE_PIXELS: usize = 8;
/// How many modules of white are around a code, as its standard asks for.
const QUIET_MODULES: usize = 4;

/// A PNG of the code for `text`; `None` for a text that is too long for any.
pub(super) fn png(text: &str) -> Option<Vec<u8>> {
    // Long links fit where there is less to correct errors with; a screen makes few.
    let code =
        [EcLevel::M, EcLevel::L].into_iter().find_map(|level| QrCode::with_error_correction_level(text, level).ok());
    encode(&code?)
}

fn encode(code: &QrCode) -> Option<Vec<u8>> {
    let modules = code.width();
    let side = (modules + 2 * QUIET_MODULES) * MODULE_PIXELS;
    // A bit a pixel, and a module is a byte wide: that is why it has eight.
    let row_bytes = side / 8;
    let blank = vec![0xff; row_bytes];
    let mut pixels = blank.repeat(QUIET_MODULES * MODULE_PIXELS);
    for row in code.to_colors().chunks(modules) {
        let mut line = blank.clone();
        for (byte, color) in line[QUIET_MODULES..].iter_mut().zip(row) {
            *byte = if *color == Color::Dark { 0x00 } else { 0xff };
        }
        pixels.extend(line.repeat(MODULE_PIXELS));
    }
    pixels.extend(blank.repeat(QUIET_MODULES * MODULE_PIXELS));
    let mut file = Vec::new();
    let side = u32::try_from(side).ok()?;
    let mut encoder = Encoder::new(&mut file, side, side);
    encoder.set_color(ColorType::Grayscale);
    encoder.set_depth(BitDepth::One);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(&pixels).ok()?;
    writer.finish().ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Every pixel of a picture, by rows: whether it is dark.
    fn pixels(file: &[u8]) -> (usize, Vec<bool>) {
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((frame.width, frame.bit_depth), (frame.height, BitDepth::One));
        let bits =
            bytes[..frame.buffer_size()].iter().flat_map(|byte| (0..8).map(move |bit| byte & (0x80 >> bit) == 0));
        (frame.width as usize, bits.collect())
    }

    #[test]
    fn the_picture_shows_the_code_with_white_around_it() {
        let text = "https://pay.example.com/qr/abc?d=1";
        let code = QrCode::new(text).unwrap();
        let (side, pixels) = pixels(&png(text).unwrap());
        assert_eq!(side, (code.width() + 8) * 8);
        let colors = code.to_colors();
        for (at, dark) in pixels.iter().enumerate() {
            let module = |pixel: usize| (pixel / 8).checked_sub(4).filter(|module| *module < code.width());
            let in_code = module(at % side).zip(module(at / side));
            let expected = in_code.is_some_and(|(x, y)| colors[y * code.width() + x] == Color::Dark);
            assert_eq!(*dark, expected, "pixel {at}");
        }
    }

    #[test]
    fn long_texts_fit_as_far_as_codes_go() {
        for (length, fits) in [(1, true), (2331, true), (2332, true), (2953, true), (2954, false)] {
            assert_eq!(png(&"a".repeat(length)).is_some(), fits, "{length}");
        }
    }
}
