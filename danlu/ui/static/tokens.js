// Tokens as text: bytes that are no whole character are written \xNN by the server, and become it beside their neighbours.

const BYTES = /(?:\\x[89a-f][0-9a-f])+/g;
const decoder = new TextDecoder("utf-8", { fatal: true });

const characters = (escapes) => {
  const data = Uint8Array.from(escapes.match(/[89a-f][0-9a-f]/g), (pair) => parseInt(pair, 16));
  try { return decoder.decode(data); } catch { return escapes; }
};

/** The texts of tokens in a row. */
export const joined = (texts) => texts.join("").replace(BYTES, characters);

/** One token, with what cannot be seen spelt out. */
export const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍")
  .replace(/[\p{Cc}\p{Cf}\p{Co}\u2028\u2029]/gu, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);

/** What each token shows in a line: of a character that several make, the last shows it, and those before a dot. */
export function shownInLine(texts) {
  const shown = [];
  let waiting = "";
  texts.forEach((text, at) => {
    const whole = joined([waiting + text]);
    const tail = whole.match(/(?:\\x[89a-f][0-9a-f])+$/);
    if (tail && at < texts.length - 1 && tail[0].length <= 12) {
      shown.push(whole.slice(0, tail.index) || "·");
      waiting = tail[0];
    } else {
      shown.push(whole);
      waiting = "";
    }
  });
  return shown;
}
