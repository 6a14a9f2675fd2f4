// Looks at a report page from its file as a person would, in a real Chromium without a network; prints what was seen as
// JSON. The job comes as JSON in the first argument: { browser, flags, url, folder, patience }. Screenshots go to the folder.

import { chromium } from "playwright-core";

const job = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath: job.browser, args: job.flags });
const context = await browser.newContext({ viewport: { width: 360, height: 780 }, offline: true });
const page = await context.newPage();
page.setDefaultTimeout(job.patience);
const asked = [];
const problems = [];
page.on("request", (request) => asked.push(request.url()));
page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(String(error)));
const shoot = (name) => page.screenshot({ path: `${job.folder}/${name}.png`, fullPage: true });
const overflow = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);

await page.goto(job.url);
const seen = { title: await page.title(), overflow: { 360: await overflow() } };
const first = page.locator("main, h1").first();
seen.first = await first.innerText();
seen.broken = await page.evaluate(() => [...document.images].filter((one) => !one.naturalWidth).length);
await shoot("phone");

// The keyboard alone: tab to the first slider, move its line, and see that it is marked.
const range = page.locator(".compare input").first();
if (await range.count()) {
  for (let i = 0; i < 100 && !(await range.evaluate((one) => one === document.activeElement)); i++) await page.keyboard.press("Tab");
  for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowRight");
  seen.slider = await range.evaluate((one) => ({
    line: getComputedStyle(one.parentElement).getPropertyValue("--at").trim(),
    label: one.getAttribute("aria-label"),
    says: one.getAttribute("aria-valuetext"),
    ring: getComputedStyle(one.parentElement.querySelector(".line"), "::after").outlineStyle,
  }));
}
await page.emulateMedia({ colorScheme: "dark" });
await shoot("phone-dark");
await page.setViewportSize({ width: 1280, height: 960 });
await shoot("desktop-dark");
await page.emulateMedia({ colorScheme: "light" });
seen.overflow[1280] = await overflow();
await shoot("desktop");
await page.emulateMedia({ media: "print" });
seen.printed = await page.locator(".slider:visible").count();
await page.pdf({ path: `${job.folder}/report.pdf`, format: "A4", printBackground: true });
console.log(JSON.stringify({ ...seen, asked, problems }));
await browser.close();
