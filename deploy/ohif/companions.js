// An extension for OHIF 3: opens Key Object Selections and Grayscale Softcopy Presentation States,
// which OHIF itself calls "not supported". Put this file at the beginning of app-config.js, and name
// it there:
//
//   window.config = { extensions: [window.dicomNodeCompanions], ... }
//
// A Key Object Selection opens as a stack of the images that it names, in its order (PS3.3
// C.17.6.2). A presentation state opens as a stack of its images in its window (C.11.8), with its
// texts (C.10.5). Window, level, zoom and every tool work as on any stack. Shutters, rotations,
// graphics other than text, tables of grey values, inversion and masks are not applied: where a state has any of them, a
// line on the image says so. Displayed areas are not applied, and of a multi-frame image all frames
// are in the stack.
(() => {
  const ID = 'dicom-node.companions';
  const KEY_OBJECTS = '1.2.840.10008.5.1.4.1.1.88.59';
  const PRESENTATION_STATE = '1.2.840.10008.5.1.4.1.1.11.1';
  const STACK = '@ohif/extension-default.sopClassHandlerModule.stack';
  const NOT_APPLIED = [
    'ShutterShape', 'MaskSubtractionSequence', 'ModalityLUTSequence', 'PresentationLUTSequence',
  ];
  const LABEL = 'dicom-node-label';

  let services = {}; // of the application
  let opened = new Map(); // SOP Instance UID of a document -> its display set

  const listed = value => (value === undefined || value === null ? [] : [].concat(value));
  const first = value => listed(value)[0];

  /** Return the instances that a document names, in its order, each once. */
  function references(document) {
    const found = [];
    const walk = items =>
      listed(items).forEach(item => {
        const image = item.ValueType === 'IMAGE' && first(item.ReferencedSOPSequence);
        if (image) found.push(image.ReferencedSOPInstanceUID);
        walk(item.ContentSequence);
      });
    walk(document.ContentSequence);
    listed(document.ReferencedSeriesSequence).forEach(series =>
      listed(series.ReferencedImageSequence).forEach(image =>
        found.push(image.ReferencedSOPInstanceUID)
      )
    );
    return [...new Set(found)];
  }

  /** Return the metadata of the images that are named, from every other display set. */
  function images(names) {
    const known = new Map();
    services.displaySetService.getActiveDisplaySets().forEach(displaySet => {
      if (displaySet.document) return;
      listed(displaySet.images).forEach(image => known.set(image.SOPInstanceUID, image));
    });
    return names.map(name => known.get(name)).filter(Boolean);
  }

  /** Return what opens a document. */
  function displaySetOf(document) {
    const names = references(document);
    const displaySet = {
      displaySetInstanceUID: `${ID}.${document.SOPInstanceUID}`,
      SOPClassHandlerId: STACK, // the viewport that shows stacks shows this one
      SOPInstanceUID: document.SOPInstanceUID,
      SOPClassUID: document.SOPClassUID,
      SeriesInstanceUID: document.SeriesInstanceUID,
      StudyInstanceUID: document.StudyInstanceUID,
      SeriesNumber: document.SeriesNumber,
      SeriesDate: document.SeriesDate,
      SeriesTime: document.SeriesTime,
      SeriesDescription: document.SeriesDescription,
      Modality: document.Modality,
      label: document.SeriesDescription,
      instance: document,
      instances: [document],
      images: [],
      isReconstructable: false,
      supportsWindowLevel: true,
      document,
      numImageFrames: 1,
      // OHIF waits for this before it shows anything.
      load: async () => {
        displaySet.images = images(names);
        const missing = names.length - displaySet.images.length;
        if (missing) {
          services.uiNotificationService.show({
            title: document.SeriesDescription,
            message: `${missing} of the ${names.length} images that it names are not in this study.`,
            type: 'warning',
          });
        }
      },
    };
    return displaySet;
  }

  /** Return the display sets of a series of documents; the same ones when asked again. */
  function getDisplaySetsFromSeries(instances) {
    return instances.map(document => {
      const uid = document.SOPInstanceUID;
      if (!opened.has(uid)) opened.set(uid, displaySetOf(document));
      return opened.get(uid);
    });
  }

  /** Return whether an item of a state is about an image: about all, if it names none. */
  function isAbout(item, uid) {
    const named = listed(item.ReferencedImageSequence);
    return !named.length || named.some(image => image.ReferencedSOPInstanceUID === uid);
  }

  /** Return the texts of a state for one image: words, and where they begin and end. */
  function texts(state, uid) {
    return listed(state.GraphicAnnotationSequence)
      .filter(item => isAbout(item, uid))
      .flatMap(item => listed(item.TextObjectSequence))
      .filter(text => text.BoundingBoxAnnotationUnits === 'DISPLAY')
      .map(text => ({
        words: text.UnformattedTextValue,
        left: Number(first(text.BoundingBoxTopLeftHandCorner)), // in parts of the display
        bottom: Number(listed(text.BoundingBoxBottomRightHandCorner)[1]),
      }));
  }

  /** Return what the state asks for and this file does not do. */
  function omitted(state) {
    const drawn = listed(state.GraphicAnnotationSequence).some(
      item =>
        listed(item.GraphicObjectSequence).length ||
        listed(item.TextObjectSequence).some(text => text.BoundingBoxAnnotationUnits !== 'DISPLAY')
    );
    const turned = Number(state.ImageRotation || 0) || state.ImageHorizontalFlip === 'Y';
    const inverse = state.PresentationLUTShape === 'INVERSE';
    const table = listed(state.SoftcopyVOILUTSequence).some(
      item => listed(item.VOILUTSequence).length || (item.VOILUTFunction || 'LINEAR') !== 'LINEAR'
    );
    const other = NOT_APPLIED.some(name => listed(state[name]).length);
    return drawn || turned || inverse || table || other;
  }

  /** Return the window of a state for one image as cornerstone wants it, if it has one. */
  function range(state, uid) {
    const window = listed(state.SoftcopyVOILUTSequence).find(item => isAbout(item, uid));
    const centre = Number(first(window?.WindowCenter));
    const width = Number(first(window?.WindowWidth));
    if (!(width > 0) || Number.isNaN(centre)) return undefined;
    // PS3.3 C.11.2.1.2.1: the middle lies half a value below the centre, the width counts both ends.
    return { lower: centre - 0.5 - (width - 1) / 2, upper: centre - 0.5 + (width - 1) / 2 };
  }

  /** Put the texts over the viewport's element, in the place of those of the image before. */
  function write(element, labels) {
    element.querySelectorAll(`.${LABEL}`).forEach(old => old.remove());
    labels.forEach(({ words, left, bottom }) => {
      const label = element.ownerDocument.createElement('div');
      label.className = LABEL;
      label.textContent = words;
      Object.assign(label.style, {
        position: 'absolute',
        left: `${100 * left}%`,
        bottom: `${100 * (1 - bottom)}%`,
        color: 'white',
        textShadow: '0 0 3px black, 0 0 3px black',
        pointerEvents: 'none',
        whiteSpace: 'pre-line',
        zIndex: 10,
      });
      element.appendChild(label);
    });
  }

  /** Apply the state whose images a viewport shows, and nothing where it shows another stack. */
  function present(event) {
    const { element, viewportId } = event.detail;
    const { viewport } = window.cornerstone.getEnabledElement(element) || {};
    const uids = services.viewportGridService.getDisplaySetsUIDsForViewport(viewportId) || [];
    const displaySet = uids.map(uid => services.displaySetService.getDisplaySetByUID(uid))[0];
    const state = displaySet?.document;
    if (!viewport?.getCurrentImageId || state?.SOPClassUID !== PRESENTATION_STATE) {
      delete element.dataset.presented;
      write(element, []);
      return;
    }
    const image = window.cornerstone.metaData.get('instance', viewport.getCurrentImageId());
    if (!image) return;
    const labels = texts(state, image.SOPInstanceUID);
    if (omitted(state)) {
      const words = 'Parts of the presentation state are not shown.';
      labels.push({ words, left: 0.02, bottom: 0.9 });
    }
    write(element, labels);
    const voiRange = range(state, image.SOPInstanceUID);
    // Once for each state: a window that the reader sets afterwards stays.
    if (voiRange && element.dataset.presented !== state.SOPInstanceUID) {
      element.dataset.presented = state.SOPInstanceUID;
      viewport.setProperties({ voiRange });
      viewport.render();
    }
  }

  function attend(event) {
    event.detail.element.addEventListener(window.cornerstone.Enums.Events.IMAGE_RENDERED, present);
  }

  window.dicomNodeCompanions = {
    id: ID,
    getSopClassHandlerModule: ({ servicesManager }) => {
      services = servicesManager.services;
      return [
        { name: 'documents', sopClassUids: [KEY_OBJECTS, PRESENTATION_STATE], getDisplaySetsFromSeries },
      ];
    },
    onModeEnter: ({ servicesManager }) => {
      services = servicesManager.services;
      opened = new Map();
      const { displaySetService } = services;
      const handler = `${ID}.sopClassHandlerModule.documents`;
      displaySetService.SOPClassHandlerIds = [handler, ...displaySetService.SOPClassHandlerIds];
      const { eventTarget, Enums } = window.cornerstone;
      eventTarget.removeEventListener(Enums.Events.ELEMENT_ENABLED, attend);
      eventTarget.addEventListener(Enums.Events.ELEMENT_ENABLED, attend);
    },
  };
})();
