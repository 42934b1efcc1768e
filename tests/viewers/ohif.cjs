// Opens a study in OHIF and tells what it lists, warns of and shows.
//   node ohif.cjs '{"playwright": folder, "browser": path, "address": url, "series": count, ...}'
// With "description" and "images", the series to open; "warned", modalities to read the warning of;
// "picture", a file. With "documents", the modalities of the series to open instead, each with the
// number of its row among those and its pictures: one more image is shown for each.
const asked = JSON.parse(process.argv[2]);
const { chromium } = require(asked.playwright);
const FLAGS = [
  '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--use-angle=swiftshader',
  '--enable-unsafe-swiftshader',
];
const PATIENCE = { timeout: 120000 };

async function settled(page) {
  await page.waitForLoadState('networkidle', PATIENCE);
  await page.waitForTimeout(3000); // it draws once more when everything is here
}

async function openSeries(page, rows, viewport) {
  const wanted = page.getByText(asked.description, { exact: true }).first();
  await wanted.dblclick();
  await viewport.getByText(asked.description, { exact: true }).waitFor(PATIENCE);
  await viewport.getByText('1/' + asked.images).waitFor(PATIENCE);
  await settled(page);
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
  return { shown, box, warnings };
}

async function openDocuments(page, rows, viewport) {
  const views = [];
  for (const { modality, row, pictures } of asked.documents) {
    const wanted = rows.filter({ has: page.getByText(modality, { exact: true }) }).nth(row);
    await wanted.dblclick();
    for (const [place, picture] of pictures.entries()) {
      const box = await viewport.boundingBox();
      if (place) {
        await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
        await page.mouse.wheel(0, 100);
      }
      await viewport.getByText(new RegExp(`\\(${place + 1}/\\d+\\)`)).waitFor(PATIENCE);
      await settled(page);
      const shown = (await viewport.innerText()).split('\n');
      await page.screenshot({ path: picture });
      views.push({ modality, row, shown, box, picture });
    }
  }
  return { views };
}

async function main() {
  const browser = await chromium.launch({ executablePath: asked.browser, args: FLAGS });
  try {
    const page = await browser.newPage({ viewport: { width: 1200, height: 720 } });
    await page.goto(asked.address);
    await page.getByText('Skip all').click(PATIENCE); // a guided tour that covers the page
    const rows = page.locator('[data-cy^="study-browser-thumbnail"]');
    await rows.nth(asked.series - 1).waitFor(PATIENCE);
    const listed = (await rows.allInnerTexts()).map(text => text.split('\n').map(s => s.trim()));
    const viewport = page.locator('[data-cy="viewport-pane"]').first();
    const open = asked.documents ? openDocuments : openSeries;
    const found = await open(page, rows, viewport);
    process.stdout.write(JSON.stringify({ listed, ...found }));
  } finally {
    await browser.close();
  }
}

main().catch(error => {
  console.error(String(error));
  process.exitCode = 1;
});
