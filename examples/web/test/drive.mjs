// Uses the page as a person would, in a real Chromium; prints what was seen as JSON. The job comes as JSON in the first
// argument: { browser, flags, url, picture, broken: { picture, model }, folder, patience } with files by path, the
// broken picture by name; it is dropped, the others are chosen. Screenshots go to the folder.

import { chromium } from "playwright-core";

const job = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath: job.browser, args: job.flags });
const page = await browser.newPage({ viewport: { width: 1280, height: 960 } });
const asked = [];
const problems = [];
page.on("request", (request) => asked.push(request.url()));
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(String(error)));

const atRest = () => ["ready", "closed"].includes(document.body.dataset.state);
const settled = () => page.waitForFunction(atRest, null, { timeout: job.patience });
const text = (selector) => page.locator(selector).innerText();
const choose = async (selector, file) => {
  await page.setInputFiles(selector, file);
  await settled();
};
const seen = { version: browser.version() };

await page.goto(job.url);
await settled();
seen.facts = await text("#model-facts");
seen.adapter = await page.evaluate(async () => {
  const info = (await navigator.gpu?.requestAdapter())?.info;
  return info ? [info.vendor, info.architecture, info.description].filter(Boolean).join(" ") : null;
});
seen.isolated = await page.evaluate(() => crossOriginIsolated);

await choose("#picture", job.picture);
seen.error = await page.locator("#error").textContent();
if (!seen.error) {
  seen.status = await text("#status");
  seen.output = await page.evaluate(() => {
    const { data, ...rest } = window.restored;
    let binary = "";
    for (const byte of new Uint8Array(data.buffer)) binary += String.fromCharCode(byte);
    return { ...rest, float32: btoa(binary) };
  });
  const line = () => page.locator(".compare").evaluate((one) => getComputedStyle(one).getPropertyValue("--at").trim());
  await page.locator("#slider").focus();
  for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowLeft");
  seen.line = await line();
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#save").click()]);
  await download.saveAs(`${job.folder}/restored.png`);
  await page.screenshot({ path: `${job.folder}/desktop.png`, fullPage: true });
  await page.setViewportSize({ width: 390, height: 844 });
  seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await page.screenshot({ path: `${job.folder}/phone.png`, fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: `${job.folder}/phone-dark.png`, fullPage: true });
}

if (job.broken) {
  await page.evaluate((name) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File(["not a picture"], name));
    dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
  }, job.broken.picture);
  await settled();
  seen.brokenPicture = await text("#error");
  await choose("#model", job.broken.model);
  seen.brokenModel = await text("#error");
  await page.screenshot({ path: `${job.folder}/error.png`, fullPage: true });
}
console.log(JSON.stringify({ ...seen, asked, problems }));
await browser.close();
