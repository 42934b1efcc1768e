// Opens a study in OHIF and tells what it lists, warns of and shows.
//   node ohif.cjs '{"playwright": folder, "browser": path, "address": url, "description": of the
//   series to open, "picture": file}'
const asked = JSON.parse(process.argv[2]);
const { chromium } = require(asked.playwright);
const FLAGS = [
  '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--use-angle=swiftshader',
  '--enable-unsafe-swiftshader',
];
const PATIENCE = { timeout: 120000 };

async function main() {
  const browser = await chromium.launch({ executablePath: asked.browser, args: FLAGS });
  try {
    const page = await browser.newPage({ viewport: { width: 1200, height: 720 } });
    await page.goto(asked.address);
    await page.getByText('Skip all').click(PATIENCE); // a guided tour that covers the page
    const rows = page.locator('[data-cy^="study-browser-thumbnail"]');
    await rows.nth(asked.series - 1).waitFor(PATIENCE);
    const listed = (await rows.allInnerTexts()).map(text => text.split('\n').map(s => s.trim()));
    const wanted = page.getByText(asked.description, { exact: true }).first();
    await wanted.dblclick();
    const viewport = page.locator('[data-cy="viewport-pane"]').first();
    await viewport.getByText(asked.description, { exact: true }).waitFor(PATIENCE);
    await viewport.getByText('1/' + asked.images).waitFor(PATIENCE);
    await page.waitForLoadState('networkidle', PATIENCE);
    await page.waitForTimeout(3000); // it draws once more when everything is here
    const shown = (await viewport.innerText()).split('\n');
    const box = await viewport.boundingBox();
    const warnings = {};
    for (const modality of asked.warned) {
      const row = rows.filter({ has: page.getByText(modality, { exact: true }) });
      await row.locator('[id^="display-set-tooltip"]').hover(PATIENCE);
      warnings[modality] = await page.getByRole('tooltip').first().innerText(PATIENCE);
      if (modality !== asked.warned.at(-1)) await page.mouse.move(box.x + 50, box.y + 200);
      await page.waitForTimeout(1000);
    }
    await page.screenshot({ path: asked.picture });
    process.stdout.write(JSON.stringify({ listed, shown, box, warnings }));
  } finally {
    await browser.close();
  }
}

main().catch(error => {
  console.error(String(error));
  process.exitCode = 1;
});
