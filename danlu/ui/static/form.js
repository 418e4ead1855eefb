// A field of a form out of its declaration. What stands in it is the text of a YAML value; nothing, the default.

import { h, t } from "./dom.js";

const PLAIN = /^[\w./~:-]+$/;

/** Text as YAML has it: quoted where it could be read as something else. */
export const asYaml = (text) => (PLAIN.test(text) && !/^(true|false|null|yes|no|on|off|~)$/i.test(text) && Number.isNaN(Number(text)) && !text.includes(": ") && !text.endsWith(":") ? text : JSON.stringify(text));

function asText(yaml) {
  if (!/^".*"$|^'.*'$/s.test(yaml)) return yaml === "null" ? "" : yaml;
  try { return yaml[0] === '"' ? JSON.parse(yaml) : yaml.slice(1, -1).replaceAll("''", "'"); } catch { return yaml; }
}

function asLines(yaml) {
  try {
    const found = JSON.parse(yaml);
    return Array.isArray(found) ? found.join("\n") : yaml;
  } catch { return yaml; }
}

const own = (field) => field.name.split(".").pop();

/**
 * A field.
 * @param field as /api gives it
 * @param value YAML, or undefined
 * @param changed (name, YAML or undefined) hears what was typed
 */
export function fieldOf(field, value, changed) {
  const place = h("div", { class: "field", id: `field-${field.name}` });
  const say = (text) => {
    const isDefault = text === undefined || text === "" || text === field.default;
    place.classList.toggle("changed", !isDefault);
    changed(field.name, isDefault ? undefined : text);
  };
  place.classList.toggle("changed", value !== undefined);
  const shown = value ?? field.default;
  const label = h("code", { id: `name-${field.name}` }, own(field));
  const named = { "aria-labelledby": `name-${field.name}`, "aria-describedby": `help-${field.name}` };
  place.append(...WIDGETS[WIDGETS[field.kind] ? field.kind : "yaml"](field, shown, value, label, named, say),
    h("p", { class: "help", id: `help-${field.name}` }, field.meaning, field.required ? ` (${t("form.required")})` : ""),
    field.advice ? h("p", { class: "help advice" }, t("form.notes"), " ", field.advice) : "");
  return place;
}

const row = (...children) => h("div", { class: "name" }, ...children);

const WIDGETS = {
  bool(field, shown, value, label, named, say) {
    if (field.null) return WIDGETS.choice({ ...field, choices: ["true", "false"] }, shown, value, label, named, say);
    const box = h("input", { type: "checkbox", checked: shown === "true", ...named, onchange: () => say(String(box.checked)) });
    return [h("label", { class: "name" }, label, box)];
  },
  choice(field, shown, value, label, named, say) {
    const choices = field.null || !field.choices.includes(field.default) ? ["", ...field.choices] : field.choices;
    const select = h("select", { ...named, onchange: () => say(select.value || undefined) },
      choices.map((one) => h("option", { value: one, selected: one === shown }, one || t("form.default", { value: field.default || "–" }))));
    return [row(label), select];
  },
  number(field, shown, value, label, named, say) {
    const { min, max, above } = field;
    const [low, high, step] = field.span || [];
    const input = h("input", { type: "number", step: field.kind === "int" ? 1 : "any", min: min ?? above, max, ...named,
      placeholder: field.default === "null" ? t("form.off") : field.default, value: value ?? (field.default === "null" ? "" : shown),
      oninput: () => { if (slider) slider.value = input.value; say(input.value); } });
    const slider = field.span && h("input", { type: "range", min: low, max: high, step, value: value ?? (shown !== "null" ? shown : own(field).startsWith("min") ? low : high), tabindex: 0, "aria-label": `${own(field)}, ${t("form.slider")}`,
      oninput: () => { input.value = slider.value; say(slider.value); } });
    return [row(label, input), slider || ""];
  },
  text(field, shown, value, label, named, say) {
    const input = h("input", { type: "text", value: value === undefined && field.default === "null" ? "" : asText(shown), ...named, required: field.required, oninput: () => say(input.value === "" ? undefined : asYaml(input.value)) });
    return [row(label), input];
  },
  lines(field, shown, value, label, named, say) {
    const area = h("textarea", { value: value === undefined ? "" : asLines(shown), rows: 2, placeholder: t("form.lines"), ...named,
      oninput: () => { const lines = area.value.split("\n").filter((line) => line !== ""); say(lines.length ? JSON.stringify(lines) : undefined); } });
    return [row(label), area];
  },
  yaml(field, shown, value, label, named, say) {
    const input = h("input", { type: "text", class: "code", value: value ?? "", placeholder: field.default || "", ...named, oninput: () => say(input.value.trim() || undefined) });
    return [row(label), input];
  },
};
WIDGETS.int = WIDGETS.number;
WIDGETS.float = WIDGETS.number;
